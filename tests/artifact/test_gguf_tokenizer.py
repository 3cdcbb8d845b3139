"""Tokenizers to GGUF's keys and back: the same ids, the same prompts, BOS as before; what keys cannot say is refused.

The reference is the `tokenizers` library running the tokenizer.json from before.
"""

from __future__ import annotations

from pathlib import Path

import gguf_tokenizer_toys as toys
import pytest
import tokenizers

from wrinklefree.artifact.gguf.tokenizer import tokenizer_from_gguf
from wrinklefree.artifact.tokenizer import Tokenizer

TEXTS = (
    "",
    " ",
    toys.TEXT[:400],
    "Hello   world\n\n\n x\t\ty  ",
    "1234567 12.5 ٣٤ ½ ² Ⅷ",
    "it's IT'S we'LL 'Re",
    "<|im_start|>user\nHi<|im_end|> <think>no</think>",
    "🦙👩‍👩‍👧 你好。 ñ e\u0301 \u200b\ufeff a\u00a0b",
    "\x00\x01\x7f\x85",
)


def _load(directory: Path, files: dict[str, bytes]) -> Tokenizer:
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return Tokenizer.load(directory)


@pytest.mark.parametrize("name", toys.BYTE_LEVEL)
def test_round_trip_of_byte_level_tokenizers(tmp_path: Path, name: str) -> None:
    """Every kind is recognised by its structure and comes back with the same ids and the same text."""
    files = toys.files(toys.byte_level(name))
    file = toys.written(tmp_path / "t.gguf", files)
    assert (file.text("tokenizer.ggml.model"), file.text("tokenizer.ggml.pre")) == ("gpt2", name)
    before = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    after = _load(tmp_path / "after", tokenizer_from_gguf(file))
    for text in TEXTS:
        expected = before.encode(text).ids
        assert after.encode(text) == expected
        assert after.decode(expected) == before.decode(expected)
        assert after.decode(expected, skip_special=False) == before.decode(expected, skip_special_tokens=False)
