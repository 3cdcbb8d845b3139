"""SentencePiece's BPE both ways: GGUF's ``llama`` vocabulary with a score per token, tokenizer.json's with merges.

llama.cpp joins the two neighbours whose text is the token of the highest score, the leftmost of equals; `tokenizers`
joins the pair of the lowest rank. They do the same when every way to split a token into two tokens is a merge and the
merges stand in the order of the scores: so merges are made, and so they are checked before scores are made of them.
A character without a token becomes its bytes ``<0x00>`` to ``<0xFF>``, which therefore all have to be there.

Source: llama.cpp, src/llama-vocab.cpp (llm_tokenizer_spm); the order of equal scores is that of Hugging Face's
converter (transformers, convert_slow_tokenizer.py, generate_merges).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.bpe import PRE_KEY, checked_merges
from wrinklefree.artifact.gguf.container import GgufFile
from wrinklefree.artifact.gguf.metadata import Value
from wrinklefree.artifact.gguf.pre_tokenizers import sequence
from wrinklefree.artifact.gguf.tokenizer_files import TokenizerFiles
from wrinklefree.artifact.gguf.vocabulary import (
    BYTE,
    MAX_MERGES,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    byte_of,
    named_tokens,
)
from wrinklefree.errors import FormatError, InputError

SCORES_KEY = "tokenizer.ggml.scores"
ADD_SPACE_KEY = "tokenizer.ggml.add_space_prefix"
SPACE = "▁"
_SCORES_ONLY = "a GGUF file has scores for this kind of tokenizer"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}


def read_sentencepiece(file: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return ``normalizer``, ``pre_tokenizer``, ``decoder`` and ``model`` of a tokenizer.json.

    Raises: FormatError when bytes lack a token, or scores are missing, no numbers, or equal where an order is needed.
    """
    missing = 256 - len({byte_of(vocabulary.tokens[index]) for index in vocabulary.ids(BYTE)})
    if missing:
        raise FormatError(
            f"{file.path}: tokenizer.ggml.token_type: {missing} of the 256 bytes have no token; a text could not be "
            "tokenized"
        )
    prefix = file.flag(ADD_SPACE_KEY, True)
    unknown = vocabulary.roles.get("unk_token")
    return {
        "normalizer": {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]} if prefix else _REPLACE,
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else vocabulary.tokens[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": named_tokens(vocabulary),
            "merges": _merges(vocabulary, _read_scores(file, vocabulary), str(file.path)),
        },
    }


def write_sentencepiece(source: TokenizerFiles, losses: list[str] | None) -> tuple[Vocabulary, dict[str, Value]]:
    """Return the vocabulary and the keys that this kind has of its own.

    ``losses``: unless None, a prefix space that is put only before the first word, or not before a space, is taken for
    one that is always put, and that is added to the list.

    Raises: InputError for what llama.cpp does otherwise; FormatError for damage.
    """
    prefix = _prefix(source, losses)
    vocab = source.model_vocab
    unknown = source.model.get("unk_token")
    vocabulary = source.vocabulary()
    types = vocabulary.types.copy()
    for index, (text, type_) in enumerate(zip(vocabulary.tokens, types.tolist(), strict=True)):
        if type_ == NORMAL and byte_of(text) is not None:
            types[index] = BYTE
        elif text == unknown:
            types[index] = UNKNOWN
        elif type_ == USER_DEFINED and SPACE in text:
            # Spaces are replaced after such tokens are looked for, so a text never has it; merges may.
            if text not in vocab:
                raise InputError(
                    f"{source.place}: added_tokens: {text!r} is found in no text: spaces become {SPACE} later"
                )
            types[index] = NORMAL
    if int((types == BYTE).sum()) != 256:
        raise InputError(
            f"{source.place}: model: byte_fallback with {int((types == BYTE).sum())} of the tokens <0x00> to <0xFF>; "
            "llama.cpp needs all 256"
        )
    vocabulary = replace(vocabulary, types=types)
    keys: dict[str, Value] = {
        PRE_KEY: "default",
        SCORES_KEY: _scores(vocabulary, checked_merges(source, vocab)),
        ADD_SPACE_KEY: prefix,
    }
    return vocabulary, keys


def splits(text: str, tokens: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield every way to cut a text into two tokens."""
    for middle in range(1, len(text)):
        left, right = text[:middle], text[middle:]
        if left in tokens and right in tokens:
            yield left, right


def _read_scores(file: GgufFile, vocabulary: Vocabulary) -> NDArray[np.float32]:
    scores = file.numbers(SCORES_KEY)
    if scores.dtype not in (np.float32, np.int32) or scores.shape != vocabulary.types.shape:
        raise FormatError(
            f"{file.path}: {SCORES_KEY}: found {scores.dtype} {list(scores.shape)}, float32 "
            f"{list(vocabulary.types.shape)} is needed"
        )
    if not np.isfinite(scores).all():
        raise FormatError(f"{file.path}: {SCORES_KEY}: found {scores[~np.isfinite(scores)][0]}, numbers are needed")
    return scores.astype(np.float32)


def _merges(vocabulary: Vocabulary, scores: NDArray[np.float32], place: str) -> list[list[str]]:
    """Return the merges in the order of the scores of what they make."""
    tokens = {vocabulary.tokens[index]: index for index in vocabulary.ids(NORMAL)}
    found: list[tuple[float, int, int, str, str]] = []
    made: dict[float, str] = {}
    for text, index in tokens.items():
        score, before = float(scores[index]), len(found)
        found += [(-score, -len(left), -len(right), left, right) for left, right in splits(text, tokens)]
        if len(found) > MAX_MERGES:
            raise FormatError(f"{place}: the tokens split into each other in more than {MAX_MERGES} ways")
        if len(found) > before and not _grow_together(made.setdefault(score, text), text):
            raise FormatError(
                f"{place}: {SCORES_KEY}: {made[score]!r} and {text!r} both have {score}; which of them is made "
                "first is not said"
            )
    return [[left, right] for *_, left, right in sorted(found, key=lambda entry: entry[:3])]


def _grow_together(one: str, other: str) -> bool:
    """Return whether two tokens need no order: the same, or runs of one character, which grow from the left."""
    return one == other or len(set(one + other)) == 1


def _scores(vocabulary: Vocabulary, merges: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
    """Return float32 ``[V]``: the earlier a token is made, the higher; specials and bytes 0.

    Raises: InputError when the merges are not what scores would give.
    """
    tokens = {vocabulary.tokens[index]: index for index in vocabulary.ids(NORMAL)}
    _check_complete(vocabulary, merges, tokens)
    ends = {left + right: rank for rank, (left, right) in enumerate(merges)}
    scores = np.zeros(len(vocabulary.tokens), np.float32)
    # What no merge makes comes last: a single character needs no score, an unused id must not be made.
    scores[vocabulary.ids(NORMAL, USER_DEFINED, UNUSED)] = -float(len(merges) + 1)
    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    group, reach, name = 0, -1, ""
    for rank, (left, right) in enumerate(merges):
        text = left + right
        if rank > reach:
            group, name = group + 1, text
        elif not _grow_together(name, text):
            raise InputError(
                f"{vocabulary.place}: model: merges: {text!r} is made before and after {name!r}; {_SCORES_ONLY}, which "
                "cannot say so"
            )
        reach = max(reach, ends[text])
        scores[ids[text]] = -float(group)
    return scores


def _check_complete(vocabulary: Vocabulary, merges: Sequence[tuple[str, str]], tokens: Mapping[str, int]) -> None:
    known = set(merges)
    for text in tokens:
        for pair in splits(text, tokens):
            if pair not in known:
                raise InputError(
                    f"{vocabulary.place}: model: merges: {pair[0]!r} and {pair[1]!r} are not merged, though {text!r} "
                    f"is a token; {_SCORES_ONLY}, which would merge them"
                )


def _prefix(source: TokenizerFiles, losses: list[str] | None) -> bool:
    """Return whether a space is put before a text, after checking that spaces are handled as llama.cpp does."""
    normalizers = [
        dict(step) for step in sequence(source.tokenizer.get("normalizer"), "normalizers", source.place, "normalizer")
    ]
    cuts = sequence(source.tokenizer.get("pre_tokenizer"), "pretokenizers", source.place, "pre_tokenizer")
    if normalizers in ([_PREPEND, _REPLACE], [_REPLACE]):
        # After the replacement there is no space to cut at.
        if not cuts or (
            len(cuts) == 1 and cuts[0].get("type") == "Split" and cuts[0].get("pattern") == {"String": " "}
        ):
            return len(normalizers) == 2
    elif (
        not normalizers
        and len(cuts) == 1
        and cuts[0].get("type") == "Metaspace"
        and cuts[0].get("replacement") == SPACE
    ):
        scheme, cut = cuts[0].get("prepend_scheme"), cuts[0].get("split", True)
        if scheme == "never" and cut is False:
            return False
        what = (
            f"{source.place}: pre_tokenizer: Metaspace with prepend_scheme {scheme!r} and split {cut}: llama.cpp puts "
            "a space before every piece of text, also before a space and after a special token, and cuts nowhere"
        )
        if losses is None or scheme not in ("first", "always", "never"):
            raise InputError(f"{what}; --lossy takes it for that")
        losses.append(what)
        return bool(scheme != "never")
    raise InputError(
        f"{source.place}: found normalizer {str(normalizers)[:160]} and pre_tokenizer "
        f"{str(list(map(dict, cuts)))[:160]}; of tokenizers with byte_fallback those are supported that replace each "
        f"space by {SPACE}, with or without one before the text"
    )
