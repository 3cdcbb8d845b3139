"""The tokenizer of a model directory: text to ids and back, and its chat template, without transformers.

Reads ``tokenizer.json`` through the `tokenizers` library, and the special tokens and the template from
``tokenizer_config.json`` and ``chat_template.jinja``. One rule is ours: the beginning-of-sequence token (BOS)
appears exactly once, whether post-processor, configuration or chat template would have written it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from wrinklefree.artifact.chat_template import MAX_TEMPLATE_CHARACTERS, ChatTemplate
from wrinklefree.artifact.files import read_bytes, write_bytes
from wrinklefree.artifact.json_text import parse_json
from wrinklefree.artifact.token_bytes import TokenBytes
from wrinklefree.errors import FormatError, InputError

# What makes a tokenizer, in the order it is copied; only the first is required.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
# ... and what of a model besides its weights and its config.json: also the end-of-text tokens.
MODEL_FILES = (*TOKENIZER_FILES, "generation_config.json")
_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
# A character of UTF-8 has at most four bytes, so a longer pending run is not an unfinished character.
_MAX_PENDING_TOKENS = 16
_REPLACEMENT = "�"


def read_model_files(directory: str | Path) -> dict[str, bytes]:
    """Return the content of a directory's `MODEL_FILES`, by name. Raises: FormatError for one that cannot be read."""
    paths = {name: Path(directory) / name for name in MODEL_FILES}
    return {name: read_bytes(path) for name, path in paths.items() if path.is_file()}


class Tokenizer:
    """Text to ids and back for one model. Build it with `Tokenizer.load` or `Tokenizer.from_files`."""

    def __init__(
        self, backend: tokenizers.Tokenizer, config: dict[str, Any], files: Mapping[str, bytes], place: str
    ) -> None:
        self._backend = backend
        self._config = config
        self._files = files
        self._place = place
        self.special_tokens: dict[str, str] = _special_tokens(config)
        self.bos_id = self._optional_id("bos_token")
        self.pad_id = self._optional_id("pad_token")
        self.eos_ids = self._find_eos_ids()

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Return the tokenizer of a model directory.

        Raises: FormatError when ``tokenizer.json`` is missing or one of the files is damaged.
        """
        directory = Path(directory)
        read_bytes(directory / "tokenizer.json")
        files = read_model_files(directory)
        if (directory / "config.json").exists():
            files["config.json"] = read_bytes(directory / "config.json")
        return cls.from_files(files, str(directory))

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], place: str) -> Tokenizer:
        """Return the tokenizer of a model whose files' contents are given by name; ``place`` says where they are from.

        Of ``config.json`` only the end-of-text tokens are read.

        Raises: FormatError when ``tokenizer.json`` is missing or one of the files is damaged.
        """
        path = f"{place}/tokenizer.json"
        if "tokenizer.json" not in files:
            raise FormatError(f"{path}: found no such file")
        with _library_errors(f"{path}: not a tokenizer"):
            backend = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
        config: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if name in files:
                config.update(parse_json(files[name], f"{place}/{name}"))
        return cls(backend, config, files, place)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included (a model may pad its embedding beyond it)."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def definition(self) -> bytes:
        """The content of tokenizer.json, for other libraries that read it."""
        return self._files["tokenizer.json"]

    @cached_property
    def adds_bos(self) -> bool:
        """Whether plain text starts with BOS: as ``add_bos_token`` says, else as the post-processor does."""
        declared = self._config.get("add_bos_token")
        if isinstance(declared, bool):
            return declared and self.bos_id is not None
        with _library_errors(f"{self._place}/tokenizer.json: cannot encode a text"):
            return self.bos_id is not None and self._backend.encode("a").ids[:1] == [self.bos_id]

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """Return the ids of a text.

        ``bos``: True puts the beginning-of-sequence token first, False adds none, None does what the model's
        configuration says. A text that already starts with it is never given a second one.

        Raises: InputError when ``bos`` is True and the tokenizer has no such token; FormatError when tokenizer.json is
        damaged in a way that only shows here.
        """
        with _library_errors(f"{self._place}/tokenizer.json: cannot encode a text"):
            # As a batch, the library lets other threads of Python run meanwhile: megabytes take seconds.
            ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if bos is None:
            bos = self.adds_bos
        if not bos:
            return ids
        if self.bos_id is None:
            raise InputError("bos=True: this tokenizer has no beginning-of-sequence token")
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of ids; bytes that are no UTF-8 become U+FFFD. Raises: FormatError as `encode`."""
        with _library_errors(f"{self._place}/tokenizer.json: cannot decode tokens"):
            text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def decoder(self, skip_special: bool = True) -> StreamDecoder:
        """Return a decoder that takes one id at a time."""
        return StreamDecoder(self, skip_special)

    def token_text(self, token: int) -> str:
        """Return the vocabulary entry of one id as it is stored, or '' for an id without one."""
        return self._backend.id_to_token(token) or ""

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that `decode` leaves out."""
        return frozenset(token for token, entry in self._backend.get_added_tokens_decoder().items() if entry.special)

    @cached_property
    def _bytes(self) -> TokenBytes:
        return TokenBytes(self._backend)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that an id stands for, as `TokenBytes` says; a special token's are those of its name."""
        return self._bytes.of(token)

    def token_id(self, text: str) -> int | None:
        """Return the id of a vocabulary entry, or None."""
        return self._backend.token_to_id(text)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The compiled template, or None. Raises FormatError when there is one and it is not a template."""
        written = self._files.get("chat_template.jinja")
        if written is not None:
            path, most = f"{self._place}/chat_template.jinja", 4 * MAX_TEMPLATE_CHARACTERS
            if len(written) > most:
                raise FormatError(f"{path}: found {len(written)} bytes, at most {most} are allowed")
            try:
                return ChatTemplate(written.decode())
            except UnicodeDecodeError as error:
                raise FormatError(f"{path}: found bytes that are not UTF-8 at offset {error.start}") from error
        source = self._config.get("chat_template")
        if isinstance(source, list):  # several named templates
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        return ChatTemplate(source) if isinstance(source, str) else None

    def apply_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the prompt text of a conversation of ``{"role": ..., "content": ...}`` messages.

        Raises: InputError when the model has no chat template or the template refuses the messages.
        """
        if self.chat_template is None:
            raise InputError(f"{self._place}: the model has no chat template (chat_template.jinja); use a plain prompt")
        return self.chat_template.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, variables=self.special_tokens
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Return the ids of a conversation, with BOS exactly once whether or not the template wrote it."""
        return self.encode(self.apply_chat(messages, add_generation_prompt, tools))

    def save(self, directory: str | Path) -> None:
        """Copy the tokenizer's files, byte for byte, into an existing directory.

        Raises: InputError when there is no space or no permission.
        """
        for name in TOKENIZER_FILES:
            if name in self._files:
                write_bytes(Path(directory) / name, self._files[name])

    def _optional_id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._backend.token_to_id(text)

    def _find_eos_ids(self) -> tuple[int, ...]:
        """Return the ids that end a text: generation_config.json's, config.json's, the tokenizer's own."""
        found: list[int] = []
        for name in ("generation_config.json", "config.json"):
            if name in self._files:
                path = f"{self._place}/{name}"
                found += _id_list(parse_json(self._files[name], path).get("eos_token_id"), f"{path}: eos_token_id")
        own = self._optional_id("eos_token")
        return tuple(dict.fromkeys(found if own is None else [*found, own]))


class StreamDecoder:
    """Text of ids that arrive one by one; a character whose bytes span tokens is held back until complete.

    The pieces of `push` and the last of `flush`, joined, are what `Tokenizer.decode` gives for all ids, with one
    exception: a SentencePiece decoder takes back whole characters when byte tokens that are no UTF-8 follow them at
    once. What was handed out stays.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        # ids[:_read] are written out; the last written window stays as context, because some decoders
        # (SentencePiece) treat the first token of a text differently.
        self._ids: list[int] = []
        self._read = 0

    def push(self, token: int) -> str:
        """Return the text that became certain with this id, often ''."""
        self._ids.append(token)
        before, after = self._window()
        if after.endswith(_REPLACEMENT) and len(self._ids) - self._read <= _MAX_PENDING_TOKENS:
            return ""
        return self._advance(before, after)

    def flush(self) -> str:
        """Return what was held back; an unfinished character becomes U+FFFD."""
        before, after = self._window()
        return self._advance(before, after)

    def _window(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        before = decode(self._ids[: self._read], self._skip_special)
        return before, decode(self._ids, self._skip_special)

    def _advance(self, before: str, after: str) -> str:
        new = after[len(before) :]
        if new:
            self._ids = self._ids[self._read :]
            self._read = len(self._ids)
        return new


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    special: dict[str, str] = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        if isinstance(value, dict):  # an AddedToken written out
            value = value.get("content")
        if isinstance(value, str):
            special[name] = value
    return special


def _id_list(value: object, place: str) -> list[int]:
    values: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    for entry in values:
        if not isinstance(entry, int) or isinstance(entry, bool) or not 0 <= entry < 2**31:
            raise FormatError(f"{place}: found {entry!r}, a token id or a list of them is needed")
    return values


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """Turn what the Rust library raises over a tokenizer.json into FormatError; its panics are no Exceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise FormatError(f"{what} ({_first_line(error)}); the file is damaged") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
