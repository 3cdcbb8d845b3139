"""How byte-level tokenizers cut a text before merging: tokenizer.json's steps and GGUF's names for them.

A GGUF file says it by a name (``tokenizer.ggml.pre``), the reading program knows the expressions; a tokenizer.json
spells them out. A name is written only where its expressions are the ones found, in the same order.

Source: llama.cpp, src/llama-vocab.cpp (names, expressions, what a name implies for merges and BOS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wrinklefree.errors import FormatError, InputError, unknown_name

# What ByteLevel of a tokenizer.json cuts by when its use_regex is on (GPT-2's expression).
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_DIGITS = r"\p{N}+"
_SUFFIXES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELLED_SUFFIXES = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_QWEN2 = _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_QWEN35 = _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = f"{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
_GPT4O = (
    f"{_UPPER}*{_LOWER}+{_SUFFIXES}?|{_UPPER}+{_LOWER}*{_SUFFIXES}?"
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    + _SPACES
)
_DEFAULT_MARKS = r"[\p{P}\$\+<=>\^~\|]+"
_THREE_DIGITS = "[0-9][0-9][0-9]"
_MAX_DEPTH = 8


@dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting: expressions applied one after the other, each match a piece of its own.

    ``normalizer``: what tokenizer.json does before (``NFC``); llama.cpp takes the text as it is.
    ``ignore_merges``: a piece that is a token is taken whole. ``adds_bos``: what holds where a GGUF file has no
    ``add_bos_token``.
    """

    name: str
    patterns: tuple[str, ...]
    normalizer: str | None = None
    ignore_merges: bool = False
    adds_bos: bool = False


# The first of equal structure is the name that is written; all are read.
PRE_TOKENIZERS = {
    kind.name: kind
    for kind in (
        PreTokenizer("gpt-2", (GPT2,)),
        PreTokenizer("smollm", (_DIGIT, GPT2)),
        PreTokenizer("llama-bpe", (_LLAMA3,), ignore_merges=True, adds_bos=True),
        PreTokenizer("smaug-bpe", (_LLAMA3,)),
        PreTokenizer("qwen2", (_QWEN2,), "NFC"),
        PreTokenizer("deepseek-r1-qwen", (_QWEN2,)),
        PreTokenizer("qwen35", (_QWEN35,), "NFC"),
        PreTokenizer("tekken", (_TEKKEN,), ignore_merges=True, adds_bos=True),
        PreTokenizer("gpt-4o", (_GPT4O,)),
        PreTokenizer("olmo", (GPT2,), "NFC"),
        PreTokenizer("command-r", (_DIGIT, GPT2), "NFC"),
        PreTokenizer("default", (_DEFAULT_MARKS, GPT2, _DIGITS, _THREE_DIGITS)),
        # The same under further names.
        PreTokenizer("llama3", (_LLAMA3,), ignore_merges=True, adds_bos=True),
        PreTokenizer("llama-v3", (_LLAMA3,), ignore_merges=True, adds_bos=True),
        PreTokenizer("falcon3", (_LLAMA3,), ignore_merges=True, adds_bos=True),
        PreTokenizer("dbrx", (_LLAMA3,)),
        PreTokenizer("llama4", (_GPT4O,)),
        PreTokenizer("phi-2", (GPT2,)),
        PreTokenizer("mpt", (GPT2,)),
        PreTokenizer("starcoder", (_DIGIT, GPT2)),
        PreTokenizer("refact", (_DIGIT, GPT2)),
    )
}


def named(name: str, place: str) -> PreTokenizer:
    """Return the pre-tokenizer of a GGUF name. Raises: FormatError when it is not one of `PRE_TOKENIZERS`."""
    if name not in PRE_TOKENIZERS:
        raise FormatError(f"{place}: {unknown_name('pre-tokenizer', name[:80], PRE_TOKENIZERS)}")
    return PRE_TOKENIZERS[name]


def steps(kind: PreTokenizer) -> dict[str, Any]:
    """Return ``normalizer`` and ``pre_tokenizer`` of a tokenizer.json."""
    parts: list[dict[str, Any]] = []
    for pattern in kind.patterns[:-1] if kind.patterns[-1] == GPT2 else kind.patterns:
        digit = {"type": "Digits", "individual_digits": True}
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        parts.append(digit if pattern == _DIGIT else split)
    last = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": kind.patterns[-1] == GPT2,
    }
    return {
        "normalizer": None if kind.normalizer is None else {"type": kind.normalizer},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*parts, last]} if parts else last,
    }


def recognise(tokenizer: Mapping[str, Any], place: str) -> PreTokenizer:
    """Return the pre-tokenizer a tokenizer.json spells out.

    Raises: InputError when no GGUF name means the same; FormatError when it is damaged.
    """
    patterns, normalizer = _patterns(tokenizer, place), _normalizer(tokenizer, place)
    ignores = tokenizer["model"].get("ignore_merges") is True
    for kind in PRE_TOKENIZERS.values():
        if (kind.patterns, kind.normalizer, kind.ignore_merges) == (patterns, normalizer, ignores):
            return kind
    raise InputError(
        f"{place}: no pre-tokenizer of GGUF cuts by {list(patterns)!r} with normalizer {normalizer} and ignore_merges "
        f"{ignores}; written can be those of {', '.join(_written())} (see docs/interchange.md)"
    )


def _written() -> list[str]:
    seen: dict[object, str] = {}
    for kind in PRE_TOKENIZERS.values():
        seen.setdefault((kind.patterns, kind.normalizer, kind.ignore_merges), kind.name)
    return list(seen.values())


def _normalizer(tokenizer: Mapping[str, Any], place: str) -> str | None:
    found = tokenizer.get("normalizer")
    for step in sequence(found, "normalizers", place, "normalizer"):
        if step != {"type": "NFC"}:
            raise InputError(
                f"{place}: normalizer: found {_short(step)}, which GGUF has no word for with byte-level tokens; "
                "none or NFC is supported"
            )
        return "NFC"
    return None


def _patterns(tokenizer: Mapping[str, Any], place: str) -> tuple[str, ...]:
    found = sequence(tokenizer.get("pre_tokenizer"), "pretokenizers", place, "pre_tokenizer")
    if not found or found[-1].get("type") != "ByteLevel" or found[-1].get("add_prefix_space") is not False:
        raise InputError(
            f"{place}: pre_tokenizer: found {_short(found[-1] if found else None)} at its end, ByteLevel without a "
            "prefix space is supported"
        )
    patterns = [_pattern(step, place) for step in found[:-1]]
    if found[-1].get("use_regex", True) is not False:
        patterns.append(GPT2)
    return tuple(patterns)


def _pattern(step: Mapping[str, Any], place: str) -> str:
    """Return the expression whose matches become pieces of their own."""
    if step.get("type") == "Digits":
        return _DIGIT if step.get("individual_digits") is True else _DIGITS
    pattern = step.get("pattern")
    expression = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    # The expressions here match every character, so removing what does not match (`invert`) isolates as well.
    how = (step.get("behavior"), step.get("invert", False))
    if (
        step.get("type") != "Split"
        or not isinstance(expression, str)
        or how
        not in (
            ("Isolated", False),
            ("Removed", True),
        )
    ):
        raise InputError(
            f"{place}: pre_tokenizer: found {_short(step)}; Digits, ByteLevel and Split by an expression that isolates "
            "its matches are supported"
        )
    return expression.replace(_SPELLED_SUFFIXES, _SUFFIXES)


def sequence(found: object, inner: str, place: str, what: str, depth: int = 0) -> list[Mapping[str, Any]]:
    """Return the steps of a tokenizer.json's field: none, one, or those of a ``Sequence``, nested or not.

    Raises: FormatError when it is neither, or nested too deep.
    """
    if depth > _MAX_DEPTH:
        raise FormatError(f"{place}: {what}: Sequences nested more than {_MAX_DEPTH} deep")
    if found is None:
        return []
    if not isinstance(found, Mapping) or not isinstance(found.get("type"), str):
        raise FormatError(f"{place}: {what}: found {_short(found)}, an object with a type is needed")
    if found["type"] != "Sequence":
        return [found]
    listed = found.get(inner)
    if not isinstance(listed, list):
        raise FormatError(f"{place}: {what}: a Sequence without its {inner}")
    return [step for part in listed for step in sequence(part, inner, place, what, depth + 1)]


def _short(value: object) -> str:
    return repr(dict(value) if isinstance(value, Mapping) else value)[:200]
