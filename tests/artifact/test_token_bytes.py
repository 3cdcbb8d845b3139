"""The bytes of tokens, joined, are the UTF-8 of the text that they were made from."""

from __future__ import annotations

import pytest
from gguf_tokenizer_toys import byte_level, sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_toys import write

from wrinklefree.artifact.token_bytes import TokenBytes
from wrinklefree.artifact.tokenizer import Tokenizer


@given(st.text())
def test_byte_level(text: str) -> None:
    backend = byte_level("gpt-2")
    names = TokenBytes(backend)
    ids = backend.encode(text, add_special_tokens=False).ids
    assert b"".join(names.of(token) for token in ids) == text.encode()


@pytest.mark.parametrize("prefix", [False, True])
@given(text=st.text())
def test_sentencepiece(prefix: bool, text: str) -> None:
    backend = sentencepiece(prefix)
    names = TokenBytes(backend)
    ids = backend.encode(text, add_special_tokens=False).ids
    joined = b"".join(names.of(token) for token in ids)
    assert (joined.removeprefix(b" ") if prefix else joined) == backend.decode(ids, skip_special_tokens=False).encode()


def test_special_tokens_have_their_names(tmp_path) -> None:  # type: ignore[no-untyped-def]
    tokenizer = Tokenizer.load(write(tmp_path))
    assert (tokenizer.token_bytes(256), tokenizer.token_bytes(9999)) == (b"<s>", b"")
    assert tokenizer.special_ids == {256, 257}
