"""Tokenizers to GGUF's keys and back: the same ids, the same prompts, BOS as before; what keys cannot say is refused.

The reference is the `tokenizers` library running the tokenizer.json from before, and for scores a plain loop that joins
what SentencePiece would. What the reading program makes of the keys is in test_gguf_tokenizer_foreign.py.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf_tokenizer_toys as toys
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.artifact.gguf.pre_tokenizers import PRE_TOKENIZERS, recognise, steps
from wrinklefree.artifact.gguf.tokenizer import tokenizer_from_gguf, tokenizer_to_gguf
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.errors import FormatError, InputError

TEXTS = (
    "",
    " ",
    toys.TEXT[:400],
    "Hello   world\n\n\n x\t\ty  ",
    "1234567 12.5 ٣٤ ½ ² Ⅷ",
    "it's IT'S we'LL 'Re",
    "<|im_start|>user\nHi<|im_end|> <think>no</think>",
    "🦙👩‍👩‍👧 你好。 ñ e\u0301 \u200b\ufeff a\u00a0b ▁▁ ▁",
    "\x00\x01\x7f\x85",
)
MESSAGES = [{"role": "user", "content": "Where is the café?"}, {"role": "assistant", "content": "There <b>."}]


def _load(directory: Path, files: dict[str, bytes]) -> Tokenizer:
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return Tokenizer.load(directory)


@cache
def _both(name: str) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
    """Return a toy before and after GGUF."""
    files = toys.files(toys.kind(name))
    with tempfile.TemporaryDirectory() as directory:
        back = tokenizer_from_gguf(toys.written(Path(directory) / "t.gguf", files))
    return tuple(tokenizers.Tokenizer.from_str(side["tokenizer.json"].decode()) for side in (files, back))


@pytest.mark.parametrize("name", toys.KINDS)
def test_round_trip(tmp_path: Path, name: str) -> None:
    """Every kind is recognised by its structure and comes back with the same ids and the same text."""
    files = toys.files(toys.kind(name))
    file = toys.written(tmp_path / "t.gguf", files)
    model, pre = ("gpt2", name) if name in toys.BYTE_LEVEL else ("llama", "default")
    assert (file.text("tokenizer.ggml.model"), file.text("tokenizer.ggml.pre")) == (model, pre)
    before = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    back = tokenizer_from_gguf(file)
    for field in ("ignore_merges", "byte_fallback"):
        assert json.loads(back["tokenizer.json"])["model"][field] == json.loads(before.to_str())["model"][field]
    after = _load(tmp_path / "after", back)
    assert {after.token_text(index): index for index in range(after.vocab_size)} == before.get_vocab()
    for text in TEXTS:
        expected = before.encode(text).ids
        assert after.encode(text) == expected
        assert after.decode(expected) == before.decode(expected)
        assert after.decode(expected, skip_special=False) == before.decode(expected, skip_special_tokens=False)


_PIECES = st.sampled_from(["it's", "'RE", " ", "  ", "\n", "\r\n", "123", "٣", "½", "ñ", "\u0301", "<|im_end|>", "▁"])
_ANY = st.lists(st.one_of(st.text(max_size=8), _PIECES, st.sampled_from(toys.TEXT.split(" "))), max_size=12)


@given(name=st.sampled_from(toys.KINDS), pieces=_ANY)
@settings(max_examples=50, deadline=None)
def test_round_trip_of_any_text(name: str, pieces: list[str]) -> None:
    before, after = _both(name)
    text = "".join(pieces)
    ids = before.encode(text).ids
    assert after.encode(text).ids == ids and after.decode(ids) == before.decode(ids)


@given(text=st.text("▁ =abtheTon12é🦙\n", max_size=24))
@settings(max_examples=50, deadline=None)
def test_merges_do_what_scores_say(text: str) -> None:
    """The plain rule (join the neighbours that make the token of the highest score) gives what the merges give."""
    tokenizer, after = _both("llama without prefix")
    keys = tokenizer_to_gguf(toys.files(tokenizer), {"vocab_size": tokenizer.get_vocab_size()})
    scores = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"].tolist(), strict=True))
    symbols = list(text.replace(" ", "▁"))
    while joins := [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]:
        place = -max(joins)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    expected = [
        s for symbol in symbols for s in ([symbol] if symbol in scores else map("<0x{:02X}>".format, symbol.encode()))
    ]
    assert after.encode(text, add_special_tokens=False).tokens == expected


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_name_is_recognised_by_its_own_steps(name: str) -> None:
    kind = PRE_TOKENIZERS[name]
    found = recognise({**steps(kind), "model": {"ignore_merges": kind.ignore_merges}}, "here")
    assert (found.patterns, found.normalizer, found.ignore_merges) == (
        kind.patterns,
        kind.normalizer,
        kind.ignore_merges,
    )
    assert found.adds_bos == kind.adds_bos


@pytest.mark.parametrize("post_processor_bos", [True, False])
@pytest.mark.parametrize("declared", [True, False, None])
def test_t23_bos_exactly_once_through_gguf(tmp_path: Path, post_processor_bos: bool, declared: bool | None) -> None:
    """Whoever wrote BOS before (post-processor, add_bos_token, the template), it is there once afterwards."""
    extra = {} if declared is None else {"add_bos_token": declared}
    template = "{{ bos_token }}" + toys.TEMPLATE
    files = toys.files(toys.byte_level("llama-bpe"), bos=post_processor_bos, template=template, **extra)
    before = _load(tmp_path / "before", files)
    file = toys.written(tmp_path / "t.gguf", files)
    after = _load(tmp_path / "after", tokenizer_from_gguf(file))
    assert file.flag("tokenizer.ggml.add_bos_token") == before.adds_bos == after.adds_bos
    assert after.encode("hi") == before.encode("hi") and after.encode("hi").count(after.bos_id) == int(before.adds_bos)
    assert after.encode_chat(MESSAGES) == before.encode_chat(MESSAGES)
    assert after.encode_chat(MESSAGES).count(after.bos_id) == 1
    # A program that goes by tokenizer.json alone puts it there too.
    declares = json.loads((tmp_path / "after" / "tokenizer_config.json").read_text())["add_bos_token"]
    assert declares is before.adds_bos
    alone = tokenizers.Tokenizer.from_file(str(tmp_path / "after" / "tokenizer.json"))
    assert alone.encode("hi").ids == after.encode("hi")


@pytest.mark.parametrize(("model", "pre", "expected"), [("gpt2", "llama-bpe", True), ("gpt2", "qwen2", False)])
def test_t23_a_file_that_does_not_say_follows_its_kind(tmp_path: Path, model: str, pre: str, expected: bool) -> None:
    files = toys.files(toys.byte_level(pre))
    file = toys.written(tmp_path / "t.gguf", files, **{"tokenizer.ggml.add_bos_token": None})
    assert _load(tmp_path / "after", tokenizer_from_gguf(file)).adds_bos is expected
    assert file.text("tokenizer.ggml.model") == model


def test_templates_are_rendered_alike(tmp_path: Path) -> None:
    tool = "{{ tools | tojson }}" + toys.TEMPLATE
    for number, (template, listed) in enumerate(
        [
            (toys.TEMPLATE, None),
            (None, toys.TEMPLATE),
            (None, [{"name": "default", "template": toys.TEMPLATE}, {"name": "tool_use", "template": tool}]),
        ]
    ):
        files = toys.files(toys.byte_level("smollm"), template=template, chat_template=listed)
        before = _load(tmp_path / f"b{number}", files)
        file = toys.written(tmp_path / "t.gguf", files)
        assert file.text("tokenizer.chat_template") == toys.TEMPLATE
        back = tokenizer_from_gguf(file)
        assert _load(tmp_path / f"a{number}", back).apply_chat(MESSAGES) == before.apply_chat(MESSAGES)
    assert file.texts("tokenizer.chat_templates") == ["tool_use"]
    assert {"name": "tool_use", "template": tool} in json.loads(back["tokenizer_config.json"])["chat_template"]
    assert "chat_template.jinja" not in tokenizer_from_gguf(toys.written(tmp_path / "t.gguf", files, **_NO_TEMPLATES))


_NO_TEMPLATES = {f"tokenizer.chat_template{end}": None for end in ("", "s", ".tool_use")}


def test_ids_beyond_the_tokens_have_names_nobody_writes(tmp_path: Path) -> None:
    """A model may have more rows than tokens; they come back as no tokens."""
    files = toys.files(toys.byte_level("qwen2"))
    size = toys.config(files, more=5)["vocab_size"]
    keys = tokenizer_to_gguf(files, {"vocab_size": size})
    assert (
        keys["tokenizer.ggml.tokens"][-1] == f"[PAD{size - 1}]"
        and keys["tokenizer.ggml.token_type"][-5:].tolist() == [5] * 5
    )
    assert (len(keys["tokenizer.ggml.tokens"]), keys["tokenizer.ggml.token_type"].dtype) == (size, np.int32)
    back = tokenizer_from_gguf(toys.gguf(tmp_path / "t.gguf", keys))
    assert f"[PAD{size - 1}]" not in json.loads(back["tokenizer.json"])["model"]["vocab"]


def test_where_a_generation_ends(tmp_path: Path) -> None:
    """Every id that ended a generation does so afterwards, those that llama.cpp knows by name as well."""
    tokenizer = toys.byte_level("smollm")
    start, end, text_end = (tokenizer.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    files = toys.files(tokenizer, pad_token="<|endoftext|>")
    files["generation_config.json"] = json.dumps({"eos_token_id": [start, end]}).encode()
    file = toys.written(tmp_path / "t.gguf", files)
    assert [file.size(f"tokenizer.ggml.{name}_token_id", 999) for name in ("eos", "eot", "eom", "padding")] == [
        end,
        end,
        start,
        text_end,
    ]
    generation = json.loads(tokenizer_from_gguf(file)["generation_config.json"])
    assert generation == {"eos_token_id": [end, start, text_end], "bos_token_id": text_end, "pad_token_id": text_end}
    files["generation_config.json"] = json.dumps({"eos_token_id": [10, 11, 12]}).encode()
    with pytest.raises(InputError, match=r"eos_token_id: found \[2, 10, 11, 12\]; GGUF holds"):
        tokenizer_to_gguf(files, toys.config(files))


def _changed(name: str, **changes: Any) -> dict[str, bytes]:
    """Return a toy's files with fields of its tokenizer.json replaced; ``model_x`` is the model's x."""
    files = toys.files(toys.kind(name))
    tokenizer = json.loads(files["tokenizer.json"])
    for field, value in changes.items():
        owner, key = (tokenizer["model"], field[6:]) if field.startswith("model_") else (tokenizer, field)
        owner[key] = value(owner[key]) if callable(value) else value
    return {**files, "tokenizer.json": json.dumps(tokenizer).encode()}


_BYTE_LEVEL_STEP = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def _token(**flags: Any) -> list[dict[str, Any]]:
    return [{"id": 3, "content": "x", "special": True, **flags}]


def _split(expression: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, _BYTE_LEVEL_STEP]}


_UNSAID: dict[str, tuple[dict[str, bytes], str]] = {
    "another expression": (_changed("smollm", pre_tokenizer=_split(r"\p{L}+|.")), "no pre-tokenizer of GGUF cuts by"),
    "nothing that cuts": (_changed("smollm", pre_tokenizer=None), "ByteLevel without a prefix space"),
    "words at spaces": (_changed("smollm", pre_tokenizer={"type": "Whitespace"}), "found {'type': 'Whitespace'}"),
    "a prefix space": (
        _changed("smollm", pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}),
        "without a prefix space",
    ),
    "punctuation": (
        _changed(
            "smollm",
            pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}, _BYTE_LEVEL_STEP]},
        ),
        "Digits, ByteLevel and Split by an expression",
    ),
    "lower case": (_changed("smollm", normalizer={"type": "Lowercase"}), "found {'type': 'Lowercase'}"),
    "composed Llama 3": (_changed("llama-bpe", normalizer={"type": "NFC"}), "with normalizer NFC"),
    "whole pieces first": (_changed("qwen2", model_ignore_merges=True), "ignore_merges True"),
    "another model": (_changed("smollm", model_type="Unigram"), "found 'Unigram', only BPE"),
    "a merge with a space": (
        _changed("smollm", model_vocab=lambda v: {**v, "a b": 600, "a bc": 601}, model_merges=[["a b", "c"]]),
        "with a space between",
    ),
    "dropout": (_changed("smollm", model_dropout=0.1), "dropout 0.1"),
    "suffix": (_changed("smollm", model_end_of_word_suffix="</w>"), "end_of_word_suffix '</w>'"),
    "unknown bytes": (
        _changed(
            "smollm", model_unk_token="<|endoftext|>", model_vocab=lambda v: {k: i for k, i in v.items() if k != "Ā"}
        ),
        "stands for 1 bytes without a token",
    ),
    "stripping token": (_changed("smollm", added_tokens=_token(lstrip=True)), "has lstrip, which GGUF"),
    "token beyond": (_changed("smollm", added_tokens=_token(id=900_000)), "has the id 900000, the model has"),
    "token in front": (
        _changed(
            "smollm",
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
            },
        ),
        r"adds \['<\|im_start\|>'\] before a text",
    ),
    "BERT": (_changed("smollm", post_processor={"type": "BertProcessing"}), "found 'BertProcessing'"),
    "missing bytes": (
        _changed("llama", model_vocab=lambda vocab: {k: i for k, i in vocab.items() if k != "<0x41>"}),
        "needs all 256",
    ),
    "a merge left out": (_changed("llama", model_merges=lambda merges: merges[1:]), "are not merged, though"),
    "merges out of order": (
        _changed("llama", model_merges=lambda merges: [*merges[5:], *merges[:5], merges[30]]),
        "is made before and after",
    ),
    "spaces otherwise": (_changed("llama", normalizer={"type": "NFKC"}), "of tokenizers with byte_fallback"),
    "Metaspace": (
        _changed(
            "llama",
            normalizer=None,
            pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        ),
        "--lossy",
    ),
}


@pytest.mark.parametrize("case", _UNSAID)
def test_what_the_keys_cannot_say_is_refused(case: str) -> None:
    files, message = _UNSAID[case]
    with pytest.raises(InputError, match=message):
        tokenizer_to_gguf(files, {"vocab_size": 1000})


def test_almost_the_same_needs_a_word(tmp_path: Path) -> None:
    """A prefix space before the first word only is written as one before every piece of text when that is allowed."""
    files, _ = _UNSAID["Metaspace"]
    losses: list[str] = []
    keys = tokenizer_to_gguf(files, {"vocab_size": 1000}, losses)
    assert len(losses) == 1 and "prepend_scheme 'first'" in losses[0]
    back = _load(tmp_path, tokenizer_from_gguf(toys.gguf(tmp_path / "t.gguf", keys)))
    before = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    assert back.encode("the town") == before.encode("the town").ids
    assert back.encode("<|im_end|>the") != before.encode("<|im_end|>the").ids


def test_a_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be written without"):
        tokenizer_to_gguf({}, {"vocab_size": 10})
    files = toys.files(toys.byte_level("smollm"), bos_token="<none>")
    with pytest.raises(InputError, match="bos_token: '<none>' is no token"):
        tokenizer_to_gguf(files, toys.config(files))


_DAMAGED_FILES: dict[str, tuple[dict[str, bytes], str]] = {
    "no JSON": ({"tokenizer.json": b"{"}, "not valid JSON"),
    "deep JSON": ({"tokenizer.json": b"[" * 100_000}, "not usable JSON"),
    "a list": ({"tokenizer.json": b"[]"}, "an object is needed"),
    "no UTF-8": ({"tokenizer.json": b'"\xff"'}, "not UTF-8 at offset 1"),
    "no model": ({"tokenizer.json": b"{}"}, "model: found no object"),
    "a vocabulary that is none": (_changed("smollm", model_vocab=[]), "an object of 1 to"),
    "ids that are none": (_changed("smollm", model_vocab={"a": "1"}), "found the id '1'"),
    "negative ids": (_changed("smollm", model_vocab={"a": -1}), "found the id -1"),
    "one id for two": (_changed("smollm", model_vocab=lambda v: {**v, "xyzzy": 5}), "both have the id 5"),
    "half a character": (_changed("smollm", model_vocab=lambda v: {**v, "\ud800": 900}), "half a surrogate pair"),
    "a long token": (_changed("smollm", model_vocab=lambda v: {**v, "x" * 5000: 900}), "found 5000 characters"),
    "merges of no tokens": (_changed("smollm", model_merges=[["q", "ÿÿ"]]), "entry 0, .* is no pair of tokens"),
    "merges that make no token": (_changed("smollm", model_merges=[["q", "ÿ"]]), "entry 0, .* is no pair of tokens"),
    "a token called as an unused id": (
        _changed("smollm", model_vocab=lambda v: {**v, "[PAD999]": 900}),
        "is the token of 900 and of 999",
    ),
    "merges that are none": (_changed("smollm", model_merges=[["q"], 5]), "entry 0"),
    "nested steps": (
        _changed("smollm", pre_tokenizer=json.loads('{"type":"Sequence","pretokenizers":[' * 20 + "]}" * 20)),
        "nested more than 8 deep",
    ),
    "steps without a type": (_changed("smollm", pre_tokenizer={"kind": 1}), "an object with a type"),
    "an added token that is none": (_changed("smollm", added_tokens=["x"]), "an object is needed"),
    "an added token without text": (_changed("smollm", added_tokens=[{"id": 3}]), "found NoneType"),
}


@pytest.mark.parametrize("case", _DAMAGED_FILES)
def test_damaged_files_are_one_error(case: str) -> None:
    files, message = _DAMAGED_FILES[case]
    with pytest.raises(FormatError, match=message):
        tokenizer_to_gguf(files, {"vocab_size": 1000})


def test_sizes_that_are_none() -> None:
    files = toys.files(toys.byte_level("smollm"))
    for size in (None, "512", -1, 0, True, 1 << 40):
        with pytest.raises(FormatError, match="vocab_size"):
            tokenizer_to_gguf(files, {"vocab_size": size})


_T = "tokenizer.ggml."
_TYPES = np.full(200, 1, np.int32)
_DAMAGED_KEYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no tokens": ("smollm", {f"{_T}tokens": None}, "has no key"),
    "numbers for tokens": ("smollm", {f"{_T}tokens": toys.int32(1)}, "an array of strings is needed"),
    "doubled token": ("smollm", {f"{_T}tokens": ["a", "a"]}, "is the token of 0 and of 1"),
    "long token": ("smollm", {f"{_T}tokens": ["a" * 5000]}, "found 5000 characters"),
    "types of another number": ("smollm", {f"{_T}token_type": _TYPES}, r"found int32 \[200\]"),
    "types of another type": ("smollm", {f"{_T}token_type": [""] * 519}, "an array of numbers is needed"),
    "an unknown type": ("smollm", {f"{_T}token_type": lambda t: t * 0 + 7}, "found 7 for token 0"),
    "a negative type": ("smollm", {f"{_T}token_type": lambda t: t * 0 - 1}, "found -1 for token 0"),
    "bytes that are none": ("smollm", {f"{_T}token_type": lambda t: t * 0 + 6}, "is called a byte"),
    "a BOS beyond": ("smollm", {f"{_T}bos_token_id": 9999}, "an integer from 0 to"),
    "a negative EOS": ("smollm", {f"{_T}eos_token_id": -1}, "an integer from 0 to"),
    "an EOT that is no id": ("smollm", {f"{_T}eot_token_id": "<eot>"}, "an integer is needed"),
    "BOS that does not exist": ("smollm", {f"{_T}bos_token_id": None, f"{_T}add_bos_token": True}, "no such token"),
    "BOS perhaps": ("smollm", {f"{_T}add_bos_token": "yes"}, "a truth value is needed"),
    "no kind": ("smollm", {f"{_T}model": None}, "has no key"),
    "another kind": ("smollm", {f"{_T}model": "bert"}, "unknown kind of tokenizer 'bert'"),
    "another cut": ("smollm", {f"{_T}pre": "smolm"}, "did you mean 'smollm'"),
    "no cut": ("smollm", {f"{_T}pre": None}, "convert it again"),
    "no merges": ("smollm", {f"{_T}merges": None}, "has no key"),
    "merges of no tokens": ("smollm", {f"{_T}merges": ["a b", "zz ÿÿ"]}, "entry"),
    "merges without a space": ("smollm", {f"{_T}merges": ["ab"]}, "entry 0, 'ab', is no pair"),
    "merges of half a token": ("smollm", {f"{_T}merges": ["<|im_end| >"]}, "entry 0"),
    "a long merge": ("smollm", {f"{_T}merges": ["a " * 5000]}, "found 10000 characters"),
    "a long template": ("smollm", {"tokenizer.chat_template": " " * (2 << 20)}, "found 2097152 characters"),
    "a template that is none": ("smollm", {"tokenizer.chat_template": 5}, "a string is needed"),
    "no scores": ("llama", {f"{_T}scores": None}, "has no key"),
    "few scores": ("llama", {f"{_T}scores": np.zeros(5, np.float32)}, r"found float32 \[5\]"),
    "scores that are none": ("llama", {f"{_T}scores": lambda s: s * np.float32("nan")}, "numbers are needed"),
    "equal scores": ("llama", {f"{_T}scores": lambda s: s * 0}, "which of them is made first"),
    "bytes as words": ("llama", {f"{_T}token_type": lambda t: np.where(t == 6, 1, t)}, "256 of the 256 bytes"),
    "a byte below zero": (
        "llama",
        {f"{_T}tokens": lambda tokens: ["<0x-1>" if text == "<0x41>" else text for text in tokens]},
        "'<0x-1>', is called a byte",
    ),
    "a space perhaps": ("llama", {f"{_T}add_space_prefix": 1}, "a truth value is needed"),
}


@pytest.mark.parametrize("case", _DAMAGED_KEYS)
def test_damaged_keys_are_one_error(tmp_path: Path, case: str) -> None:
    name, changes, message = _DAMAGED_KEYS[case]
    files = toys.files(toys.kind(name))
    keys = tokenizer_to_gguf(files, toys.config(files))
    changed = {key: value(keys[key]) if callable(value) else value for key, value in changes.items()}
    with pytest.raises(FormatError, match=message):
        tokenizer_from_gguf(toys.written(tmp_path / "t.gguf", files, **changed))


def test_an_empty_token_has_a_name(tmp_path: Path) -> None:
    files = toys.files(toys.byte_level("smollm"))
    index = toys.byte_level("smollm").token_to_id("<think>")
    tokens = ["" if text == "<think>" else text for text in tokenizer_to_gguf(files, toys.config(files))[f"{_T}tokens"]]
    back = tokenizer_from_gguf(toys.written(tmp_path / "t.gguf", files, **{f"{_T}tokens": tokens}))
    assert json.loads(back["tokenizer.json"])["model"]["vocab"][f"[EMPTY_{index}]"] == index


def test_runs_of_one_score_grow_from_the_left(tmp_path: Path) -> None:
    """Llama 2's vocabulary gives all its runs of spaces the same score; llama.cpp then joins the leftmost pair."""
    keys = dict(toys.keys("llama without prefix"))
    runs = [len(text) > 1 and set(text) == {"▁"} for text in keys[f"{_T}tokens"]]
    keys[f"{_T}scores"] = np.where(runs, np.float32(-1e9), keys[f"{_T}scores"])
    back = tokenizer_from_gguf(toys.gguf(tmp_path / "t.gguf", keys))
    tokenizer = tokenizers.Tokenizer.from_str(back["tokenizer.json"].decode())
    longest = sum(runs) + 1
    assert tokenizer.encode(" " * (longest + 3)).tokens == ["▁" * longest, "▁" * 3]


def test_a_table_of_another_size_is_refused(tmp_path: Path) -> None:
    files = toys.files(toys.byte_level("smollm"))
    keys = tokenizer_to_gguf(files, toys.config(files))
    rows = len(keys["tokenizer.ggml.tokens"])
    assert tokenizer_from_gguf(toys.gguf(tmp_path / "t.gguf", keys, rows=rows))
    with pytest.raises(FormatError, match=rf"found {rows} tokens for {rows + 1} rows"):
        tokenizer_from_gguf(toys.gguf(tmp_path / "t.gguf", keys, rows=rows + 1))


def test_llama_3_files_without_the_name_of_their_cut(tmp_path: Path) -> None:
    """bitnet.cpp's converter writes none; the vocabulary says whose it is."""
    tokenizer = tokenizers.Tokenizer.from_str(toys.byte_level("llama-bpe").to_str())
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    files = toys.files(tokenizer)
    file = toys.written(tmp_path / "t.gguf", files, **{"tokenizer.ggml.pre": None})
    after = _load(tmp_path / "after", tokenizer_from_gguf(file))
    for text in TEXTS:
        assert after.encode(text, bos=False) == tokenizer.encode(text).ids
