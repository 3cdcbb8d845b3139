"""Strict JSON: what only Python takes for JSON is refused with the place; JSON reads as `json.loads` reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrinklefree.artifact.json_text import MAX_DEPTH, parse_json, parse_json_value
from wrinklefree.errors import FormatError, InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' appears twice"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e999]", "1e999 is more than a float64 holds"),
        (rb'["\ud800"]', "half a surrogate pair"),
        (rb'{"\udc00x": 1}', "half a surrogate pair"),
        (rb'["\ud83d\ud83d\ude00"]', "half a surrogate pair"),
        (b"[" * 100_000, "levels of nesting"),
        (b"[" * 900 + b"]" * 900, "levels of nesting"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"[]" + b"}" * (MAX_DEPTH + 1), "levels of nesting"),
        (b"9" * 5000, "4300 digits"),
        (b'["\xc0\xaf"]', "not UTF-8 at offset 2"),
        (b'["\xed\xa0\x80"]', "not UTF-8"),
        (b'["a\0b"]', "line 1: Invalid control character"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"{} {}", "line 1: Extra data"),
        (b"", "line 1: Expecting value"),
    ],
)
def test_what_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(FormatError, match="here: ") as error:
        parse_json_value(text, "here")
    assert message in str(error.value)


@given(JSON)
def test_json_is_read_as_python_reads_it(value: Any) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate, drawn as text
            continue
        assert parse_json_value(text.encode(), "here") == value


def test_what_is_at_the_edge_is_read() -> None:
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json_value(deepest, "here") == json.loads(deepest)
    assert parse_json_value(rb'["\ud83d\ude00\u0000"]', "here") == ["\U0001f600\0"]
    assert parse_json_value("9" * 4300, "here") == int("9" * 4300)
    with pytest.raises(FormatError, match="found a JSON list, an object is needed"):
        parse_json(b"[]", "here")


def test_a_message_can_be_printed() -> None:
    """A name out of a file could otherwise clear the screen, or raise when it is printed."""
    assert str(InputError("a\x1b[2J b\ud800")) == r"a\x1b[2J b\ud800"
    assert str(FormatError("two\nlines, é")) == "two\nlines, é"
    assert len(str(FormatError("x" * 1_000_000))) < 2_100
