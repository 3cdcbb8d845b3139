"""Our tokenizer against its claims: BOS exactly once, incremental equals whole text, damage is a FormatError.

The reference for templates is transformers' rendering of the same template (when transformers is installed).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizer_toys as toys
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.errors import FormatError, InputError

MESSAGES = [{"role": "user", "content": "Where is the café?"}]


@pytest.mark.parametrize("post_processor_bos", [True, False])
@pytest.mark.parametrize("declared", [True, False, None])
def test_t23_bos_exactly_once(tmp_path: Path, post_processor_bos: bool, declared: bool | None) -> None:
    """Whoever writes BOS (post-processor, add_bos_token, template, caller), it is there once."""
    extra = {} if declared is None else {"add_bos_token": declared}
    tokenizer = Tokenizer.load(toys.write(tmp_path, post_processor_bos=post_processor_bos, **extra))
    expected = declared if declared is not None else post_processor_bos
    assert tokenizer.adds_bos is expected
    assert tokenizer.encode("hi").count(tokenizer.bos_id) == int(expected)
    assert tokenizer.encode("hi", bos=True).count(tokenizer.bos_id) == 1
    assert tokenizer.encode("hi", bos=False).count(tokenizer.bos_id) == 0
    # The template writes "<s>" itself.
    text = tokenizer.apply_chat(MESSAGES)
    for ids in (tokenizer.encode_chat(MESSAGES), tokenizer.encode(text, bos=True)):
        assert ids[0] == tokenizer.bos_id
        assert ids.count(tokenizer.bos_id) == 1


def test_bos_where_there_is_none_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(toys.write(tmp_path, bos_token=None))
    assert tokenizer.bos_id is None and tokenizer.encode("a") == tokenizer.encode("a", bos=False)
    with pytest.raises(InputError, match="no beginning-of-sequence token"):
        tokenizer.encode("a", bos=True)


def test_empty_text_has_no_tokens(tmp_path: Path) -> None:
    assert Tokenizer.load(toys.write(tmp_path)).encode("", bos=False) == []


@given(text=st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_stream_equals_whole(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """A character of one to four bytes arrives whole: the pieces joined are the text, none has U+FFFD."""
    tokenizer = _cached(tmp_path_factory)
    decoder = tokenizer.decoder()
    pieces = [decoder.push(token) for token in tokenizer.encode(text, bos=False)]
    assert "".join(pieces) + decoder.flush() == text
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)


@given(tokens=st.lists(st.integers(0, 257), max_size=60))
@settings(max_examples=60, deadline=None)
def test_stream_of_any_bytes_equals_whole(tmp_path_factory: pytest.TempPathFactory, tokens: list[int]) -> None:
    tokenizer = _cached(tmp_path_factory)
    decoder = tokenizer.decoder()
    text = "".join(decoder.push(token) for token in tokens) + decoder.flush()
    # More than 16 tokens in a row that are no UTF-8 are written early: only the replacements may differ.
    assert text.replace("�", "") == tokenizer.decode(tokens).replace("�", "")


def test_decode_keeps_special_tokens_when_asked(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(toys.write(tmp_path))
    ids = tokenizer.encode("<s>a</s>")
    assert tokenizer.decode(ids) == "a" and tokenizer.decode(ids, skip_special=False) == "<s>a</s>"


def test_eos_ids_are_collected_once(tmp_path: Path) -> None:
    toys.write(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 257]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_ids == (7, 257, 9)
    assert (tokenizer.bos_id, tokenizer.vocab_size) == (256, 258)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": -9}))
    with pytest.raises(FormatError, match="eos_token_id"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("template_file", [True, False])
def test_chat_equals_transformers(tmp_path: Path, template_file: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference rendering is not checked")
    toys.write(tmp_path, template=toys.CHATML, template_file=template_file)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    messages = [{"role": "system", "content": "Be <brief> & 'kind'."}, *MESSAGES]
    for generation in (True, False):
        expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        assert Tokenizer.load(tmp_path).apply_chat(messages, generation) == expected


def test_save_keeps_every_byte(tmp_path: Path) -> None:
    source, copy = toys.write(tmp_path / "a"), tmp_path / "b"
    copy.mkdir()
    Tokenizer.load(source).save(copy)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (copy / name).read_bytes() == (source / name).read_bytes()


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.json: found no such file"):
        Tokenizer.load(tmp_path)
    toys.write(tmp_path)
    good = (tmp_path / "tokenizer.json").read_bytes()
    for bad in (b"", b"{}", good[: len(good) // 2], b"\xff\xfe\x00", b"[" * 100_000):
        (tmp_path / "tokenizer.json").write_bytes(bad)
        with pytest.raises(FormatError, match="not a tokenizer"):
            Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(good)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(FormatError, match="an object is needed"):
        Tokenizer.load(tmp_path)


def test_a_post_processor_that_names_a_second_text(tmp_path: Path) -> None:
    """The library loads it and panics at the first text."""
    file = toys.write(tmp_path) / "tokenizer.json"
    raw = json.loads(file.read_text())
    pieces = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    raw["post_processor"] = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": {}}
    file.write_text(json.dumps(raw))
    with pytest.raises(FormatError, match=r"tokenizer\.json: cannot encode a text"):
        Tokenizer.load(tmp_path).encode("a")


def test_no_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no chat template"):
        Tokenizer.load(toys.write(tmp_path, template=None)).apply_chat(MESSAGES)


_HOSTILE = {
    "internals": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "mutation": "{{ messages.append(1) }}",
    "nested loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "multiplied text": "{{ 'a' * 10 ** 9 }}",
    "huge power": "{{ 9 ** 9999 }}",
    "squares": "{% set ns = namespace(n=9) %}{% for i in range(40) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "doubling": "{% set ns = namespace(s='ab') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "adding": "{% set ns = namespace(s='ab') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "adding lists": "{% set ns = namespace(s=[1]) %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "replacing": "{% set s = 'a' * 99999 %}{{ s|replace('a', s)|length }}",
    "replacing by a method": "{% set s = 'a' * 99999 %}{{ s.replace('a', s)|length }}",
    "a wide column": "{{ ('a'|center(999999999))|length }}",
    "a wide method": "{{ 'a'.rjust(999999999)|length }}",
    "a wide format": "{{ '{:>999999999}'.format(1)|length }}",
    "a width in a field": "{{ '{:>{}}'.format(1, 999999999)|length }}",
    "joining": "{{ range(99999)|join('a' * 99999)|length }}",
    "joining by a method": "{% set s = 'a' * 99999 %}{{ s.join(s)|length }}",
    "indenting": "{{ ('\n' * 99999)|indent(9999)|length }}",
    "digits": "{{ 2.5|round(999999999) }}",
    "bytes of a number": "{{ (1).to_bytes(999999999, 'big')|length }}",
    "a macro that calls itself twice": "{% macro f(n) %}{{ f(n) if n < 1 else '' }}{% if n %}{{ f(n-1) }}{{ f(n-1) }}"
    "{% endif %}{% endmacro %}{{ f(60) }}",
    "a loop that calls itself": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{{ loop([1, 2]) }}{% endfor %}",
    "a block that calls itself": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "a hidden output": "{% set x %}{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}{% endset %}",
    "deep tuples": "{% set ns = namespace(t=()) %}{% for i in range(99999) %}{% set ns.t = (ns.t, 1) %}{% endfor %}"
    "{{ {ns.t: 1}|length }}",
    "slices": "{% set ns = namespace(l=[]) %}{% set s = 'a' * 999999 %}{% for i in range(999) %}"
    "{% set ns.l = ns.l + [s[i:]] %}{% endfor %}",
    "formatted width": "{{ '%999999999d' % 1 }}",
    "endless output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "missing attribute": "{{ messages[0].nothing.more }}",
    "division": "{{ 1 // 0 }}",
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_templates_are_stopped(tmp_path: Path, name: str) -> None:
    tokenizer = Tokenizer.load(toys.write(tmp_path, template=_HOSTILE[name]))
    with pytest.raises(FormatError, match="chat template"):
        tokenizer.apply_chat(MESSAGES)


def test_template_that_is_none(tmp_path: Path) -> None:
    for source in ("{% for %}", "{{", "a" * (1 << 18)):
        with pytest.raises(FormatError, match="chat template"):
            Tokenizer.load(toys.write(tmp_path, template=source)).apply_chat(MESSAGES)


def test_template_helpers(tmp_path: Path) -> None:
    source = (
        "{% generation %}{{ tools | tojson }}{% endgeneration %}"
        "{% for m in messages %}{% if loop.last %}{{ loop.length }}{% break %}{% endif %}{% endfor %}"
        "{{ strftime_now('%Y')[:2] }}"
    )
    tokenizer = Tokenizer.load(toys.write(tmp_path, template=source))
    assert tokenizer.apply_chat(MESSAGES, tools=[{"name": "<f>"}]) == '[{"name": "<f>"}]120'
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="roles must alternate"):
        Tokenizer.load(toys.write(tmp_path, template=refusing)).apply_chat(MESSAGES)


_loaded: list[Tokenizer] = []


def _cached(factory: pytest.TempPathFactory) -> Tokenizer:
    if not _loaded:
        _loaded.append(Tokenizer.load(toys.write(factory.mktemp("toy"))))
    return _loaded[0]
