"""What a tokenizer's files say, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wrinklefree.artifact.files import json_bytes
from wrinklefree.artifact.json_text import parse_json
from wrinklefree.artifact.tokenizer import Tokenizer


def tokenizer_of(files: Mapping[str, bytes], place: str | Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return kind, pre-tokenizer, sizes and special tokens; nothing where there is no tokenizer.json.

    Raises: FormatError when a file is damaged.
    """
    if "tokenizer.json" not in files:
        return {}
    raw = parse_json(files["tokenizer.json"], f"{place}/tokenizer.json")
    ends = {"eos_token_id": config.get("eos_token_id")}
    tokenizer = Tokenizer.from_files({**files, "config.json": json_bytes(ends)}, str(place))
    return {
        "kind": _type(raw.get("model")),
        "pre_tokenizer": _pre_tokenizer(raw),
        "vocab_size": tokenizer.vocab_size,
        "bos": _named(tokenizer, tokenizer.bos_id),
        "eos": [_named(tokenizer, token) for token in tokenizer.eos_ids],
        "pad": _named(tokenizer, tokenizer.pad_id),
        "adds_bos": tokenizer.adds_bos,
        "chat_template": tokenizer.chat_template is not None,
    }


def _pre_tokenizer(raw: Mapping[str, Any]) -> str | None:
    """The names of the steps that cut a text before the vocabulary sees it, normalisers in front."""
    steps = []
    for key, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        found = raw.get(key)
        several = found.get(inner) if isinstance(found, dict) else None
        for part in several if isinstance(several, list) else [found]:
            name = _type(part)
            steps += [] if name is None else [name]
    return ", ".join(steps) or None


def _type(value: object) -> str | None:
    found = value.get("type") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def _named(tokenizer: Tokenizer, token: int | None) -> str | None:
    return None if token is None else f"{tokenizer.token_text(token)} ({token})"
