"""GGUF's tokenizer keys and a tokenizer's files, changed at any place: one error, or something that can be used."""

from __future__ import annotations

import json
from typing import Any

import gguf_tokenizer_toys as toys
import numpy as np
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.artifact.gguf.tokenizer import tokenizer_from_gguf, tokenizer_to_gguf
from wrinklefree.errors import FormatError, InputError

_FIELDS = ["type", "pattern", "Regex", "pretokenizers", "content", "id", "single", "SpecialToken", "Sequence", "name"]
_VALUES = st.one_of(
    st.text(max_size=4),
    st.integers(-5, 600),
    st.booleans(),
    st.floats(width=32),
    st.lists(st.text(max_size=3), max_size=4),
    st.sampled_from(["llama", "gpt2", "default", "qwen2"]),
    st.integers(-2, 8).map(lambda fill: np.full(437, fill, np.int32)),
    st.integers(0, 600).map(lambda size: np.zeros(size, np.float32)),
)


@given(
    name=st.sampled_from(["smollm", "llama"]),
    edits=st.lists(st.tuples(st.integers(0, 14), _VALUES), min_size=1, max_size=3),
)
@settings(max_examples=30, deadline=None)
def test_any_keys_are_read_or_refused(name: str, edits: list[tuple[int, Any]]) -> None:
    """Whatever the keys hold, they are refused with one error, or the files they give can be loaded."""
    keys = dict(toys.keys(name))
    for place, value in edits:
        keys[sorted(keys)[place % len(keys)]] = value
    try:
        files = tokenizer_from_gguf(toys.in_memory(keys))
    except FormatError:
        return
    tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    tokenizer.decode(tokenizer.encode("It's a small town 12").ids)


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 600), st.floats(), st.text(max_size=3), st.just("Sequence")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=3)),
    max_leaves=6,
)


@given(
    name=st.sampled_from(["smollm", "llama"]), path=st.lists(st.integers(0, 40), min_size=1, max_size=7), value=_JSON
)
@settings(max_examples=25, deadline=None)
def test_any_files_are_written_or_refused(name: str, path: list[int], value: Any) -> None:
    """Whatever stands at any place of the files, it is refused, or the keys it gives are read again."""
    files = toys.files(toys.kind(name), bos=True)
    content = {file: json.loads(data) for file, data in files.items() if file.endswith(".json")}
    content["generation_config.json"] = {"eos_token_id": [1, 2]}
    node: Any = content
    for depth, step in enumerate(path):
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = keys[step % len(keys)]
        if depth == len(path) - 1 or not isinstance(node[key], dict | list) or not node[key]:
            node[key] = value
            break
        node = node[key]
    changed = {file: json.dumps(data).encode() for file, data in content.items()}
    try:
        written = tokenizer_to_gguf(changed, {"vocab_size": 1000})
    except InputError:
        return
    tokenizer_from_gguf(toys.in_memory(written))
