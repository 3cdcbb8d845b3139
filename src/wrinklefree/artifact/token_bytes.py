"""The bytes that a token stands for: tokens may be parts of characters, which have no text of their own."""

from __future__ import annotations

import json
import re
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """The bytes of each token of a tokenizer, special tokens with their own names.

    Of byte-level vocabularies (GPT-2's table of characters) and of SentencePiece's (U+2581 for a space, ``<0x0A>`` for
    a byte) they are exact, joined they are the text's UTF-8 but for a first space that a decoder strips; tokens of
    other kinds have the bytes of their text.
    """

    def __init__(self, backend: Any) -> None:
        """``backend``: the tokenizers library's object."""
        self._backend = backend
        self._added = {token: entry.content for token, entry in backend.get_added_tokens_decoder().items()}
        self._steps = _steps(backend)
        kinds = {step["type"] for step in self._steps}
        self._byte_level = "ByteLevel" in kinds
        self._known = kinds <= {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
        self._table = _byte_of_character() if self._byte_level else {}

    def of(self, token: int) -> bytes:
        """Return the bytes of a token; none for an id without an entry."""
        if token in self._added:
            return self._added[token].encode()
        entry = self._backend.id_to_token(token)
        if entry is None:
            return b""
        if not self._known:
            text: str = self._backend.decode([token], skip_special_tokens=False)
            return text.encode()
        if self._byte_level:
            return b"".join(self._table.get(c) or c.encode() for c in entry)
        found = _BYTE.fullmatch(entry)
        if found is not None and any(step["type"] == "ByteFallback" for step in self._steps):
            return bytes([int(found.group(1), 16)])
        for step in self._steps:
            if step["type"] == "Replace" and "String" in step["pattern"]:
                entry = entry.replace(step["pattern"]["String"], step["content"])
            elif step["type"] == "Metaspace":
                entry = entry.replace(step["replacement"], " ")
        return str(entry).encode()


def _steps(backend: Any) -> list[dict[str, Any]]:
    if backend.decoder is None:
        return []
    decoder = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return steps


def _byte_of_character() -> dict[str, bytes]:
    """GPT-2's table: printable bytes stand for themselves, the others for the characters from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): bytes([byte]) for byte in printable}
    return table | {chr(256 + index): bytes([byte]) for index, byte in enumerate(others)}
