"""The vocabulary of a GGUF file: the text of every id, what kind of token it is, and the ids with a role.

Source: llama.cpp, src/llama-vocab.cpp and include/llama.h (kinds and roles), conversion/base.py (names of unused ids).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.container import GgufFile
from wrinklefree.errors import FormatError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MAX_TOKENS = 1 << 20
MAX_MERGES = 1 << 21
MAX_TOKEN_CHARACTERS = 1024
TOKENS_KEY = "tokenizer.ggml.tokens"
TYPES_KEY = "tokenizer.ggml.token_type"
# What tokenizer_config.json calls a token -> what GGUF calls its id.
ROLES = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "cls_token": "tokenizer.ggml.cls_token_id",
    "mask_token": "tokenizer.ggml.mask_token_id",
}
EOT_KEY = "tokenizer.ggml.eot_token_id"
EOM_KEY = "tokenizer.ggml.eom_token_id"
_BYTE = re.compile("<0x([0-9A-F]{2})>")
_PADDING = "[PAD{}]"


@dataclass(frozen=True)
class Vocabulary:
    """``tokens``: the text of id 0, 1, ...; ``types`` int32 ``[V]``; ``roles``: ids under the names of `ROLES`."""

    place: str
    tokens: list[str]
    types: NDArray[np.int32]
    roles: Mapping[str, int]

    def ids(self, *kinds: int) -> list[int]:
        """Return the ids of these kinds, ascending."""
        return np.flatnonzero(np.isin(self.types, kinds)).tolist()


def byte_of(text: str) -> int | None:
    """Return which byte a token like ``<0x0A>`` stands for, or None."""
    match = _BYTE.fullmatch(text)
    return int(match[1], 16) if match else None


def padding(index: int) -> str:
    """Return what an id without a token is called."""
    return _PADDING.format(index)


def named_tokens(vocabulary: Vocabulary) -> dict[str, int]:
    """Return text and id of every token, without ids that have none."""
    kinds = vocabulary.types.tolist()
    return {
        text: index for index, text in enumerate(vocabulary.tokens) if kinds[index] != UNUSED or text != padding(index)
    }


def read_vocabulary(file: GgufFile) -> Vocabulary:
    """Return the checked vocabulary of a file.

    Raises: FormatError when tokens are missing, too many, doubled or too long, kinds are unknown or of another
    number, byte tokens name no byte, or a role's id has no token.
    """
    place = str(file.path)
    tokens = file.texts(TOKENS_KEY)
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise FormatError(f"{place}: {TOKENS_KEY}: found {len(tokens)} tokens, 1 to {MAX_TOKENS} are allowed")
    check_texts(tokens, f"{place}: {TOKENS_KEY}")
    table = file.tensors.get("token_embd.weight")
    if table is not None and table.shape[0] != len(tokens):
        raise FormatError(
            f"{place}: {TOKENS_KEY}: found {len(tokens)} tokens for {table.shape[0]} rows of token_embd.weight"
        )
    # llama.cpp calls empty ones so too; a tokenizer.json cannot have an empty token.
    tokens = [text or f"[EMPTY_{index}]" for index, text in enumerate(tokens)]
    check_distinct(tokens, f"{place}: {TOKENS_KEY}")
    types = _read_types(file, tokens)
    most = len(tokens) - 1
    roles = {name: file.size(key, most) for name, key in ROLES.items() if key in file.metadata}
    return Vocabulary(place, tokens, types, roles)


def check_texts(texts: Iterable[object], what: str) -> None:
    """Raises: FormatError for what is no text, or too long to be a token."""
    for index, text in enumerate(texts):
        if not isinstance(text, str) or len(text) > MAX_TOKEN_CHARACTERS:
            found = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
            raise FormatError(
                f"{what}: entry {index}: found {found}, a text of at most {MAX_TOKEN_CHARACTERS} is needed"
            )


def check_distinct(tokens: list[str], what: str) -> None:
    """Raises: FormatError when two ids have the same text."""
    seen: dict[str, int] = {}
    for index, text in enumerate(tokens):
        if seen.setdefault(text, index) != index:
            raise FormatError(f"{what}: {text!r} is the token of {seen[text]} and of {index}; each needs its own text")


def added_token(index: int, text: str, special: bool) -> dict[str, Any]:
    """Return an entry of ``added_tokens``: a token found in the text before anything else is done with it."""
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _read_types(file: GgufFile, tokens: list[str]) -> NDArray[np.int32]:
    if TYPES_KEY not in file.metadata:
        return np.full(len(tokens), NORMAL, np.int32)
    types = file.numbers(TYPES_KEY)
    if types.dtype != np.int32 or types.shape != (len(tokens),):
        raise FormatError(
            f"{file.path}: {TYPES_KEY}: found {types.dtype} {list(types.shape)}, int32 [{len(tokens)}] is needed"
        )
    if int(types.min()) < NORMAL or int(types.max()) > BYTE:
        wrong = int(np.flatnonzero((types < NORMAL) | (types > BYTE))[0])
        raise FormatError(
            f"{file.path}: {TYPES_KEY}: found {types[wrong]} for token {wrong}, allowed are {NORMAL} to {BYTE}"
        )
    for index in np.flatnonzero(types == BYTE).tolist():
        if byte_of(tokens[index]) is None:
            raise FormatError(
                f"{file.path}: {TYPES_KEY}: token {index}, {tokens[index][:40]!r}, is called a byte; <0x00> to <0xFF> "
                "are bytes"
            )
    return types
