"""Sources, tokens on disk and the leakage guard: documents read against files written here; every user error read.

The guard is compared with its own promise: after it, no training document shares a run of eight words with a
held-out one. The Python documentation is compared with the module docstrings Python itself reports.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data_toys import EOS, byte_encoder, toy_documents
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.data.build import DataConfig, build_data, split_source, split_sources
from wrinklefree.data.document import Document, SourceConfig
from wrinklefree.data.python_docs import HELD_OUT_TOPICS, docstrings, topics
from wrinklefree.data.sources import read_documents, source_from_name
from wrinklefree.data.split import Split, guard, shares_passage, split
from wrinklefree.data.tokens import TextEncoder, tokenize
from wrinklefree.errors import InputError, MissingDependencyError


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffone\r\n\r\ntwo ß\n")
    assert read_documents(SourceConfig("text", path)) == [Document("text:a.txt", "one\n\ntwo ß\n")]


def test_a_directory_gives_its_text_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, text in (("z.txt", "z"), ("a.txt", "a"), ("b/c.txt", "c"), ("skip.md", "m"), ("blank.txt", " \n")):
        write(tmp_path / name, text)
    found = read_documents(SourceConfig("text", str(tmp_path)))
    assert [document.id for document in found] == ["text:a.txt", "text:b/c.txt", "text:z.txt"]
    assert len(read_documents(SourceConfig("text", str(tmp_path), limit=2))) == 2


def test_a_jsonl_line_is_one_document(tmp_path: Path) -> None:
    lines = [json.dumps({"body": "first\u2028line"}, ensure_ascii=False), "", json.dumps({"body": "second"})]
    path = write(tmp_path / "d.jsonl", "\n".join(lines))
    found = read_documents(SourceConfig("jsonl", path, field="body"))
    assert found == [Document("jsonl:d.jsonl:1", "first\u2028line"), Document("jsonl:d.jsonl:3", "second")]


@pytest.mark.parametrize(
    ("config", "content", "message"),
    [
        (SourceConfig("txet", "x"), "", "unknown source kind 'txet'; did you mean 'text'"),
        (SourceConfig("text", "{file}"), b"ok \xff\xfe", "not UTF-8 at offset 3"),
        (SourceConfig("text", "{file}"), "  \n\n", "found no text"),
        (SourceConfig("text", "{file}"), b"", "found no text"),
        (SourceConfig("text", "{dir}/missing.txt"), "", "no such file"),
        (SourceConfig("text", "{dir}/empty"), "", r"holds no \.txt file"),
        (SourceConfig("text"), "", "no path given"),
        (SourceConfig("text", "{file}", limit=0), "a", "at least 1 document"),
        (SourceConfig("jsonl", "{file}"), '{"text": "a"}\n{"text": ', "line 2: not valid JSON"),
        (SourceConfig("jsonl", "{file}"), "[1]", "found a JSON list"),
        (SourceConfig("jsonl", "{file}", field="txt"), '{"text": "a"}', "did you mean 'text'"),
        (SourceConfig("jsonl", "{file}"), '{"text": 3}', "holds a int"),
        (SourceConfig("jsonl", "{file}"), "[" * 100_000, "not valid JSON"),
        (SourceConfig("huggingface"), "", "no path given"),
        (SourceConfig("huggingface", "a/b", streaming=True), "", "streaming needs limit"),
    ],
)
def test_bad_sources_are_answered_in_one_line(
    tmp_path: Path, config: SourceConfig, content: str | bytes, message: str
) -> None:
    file = write(tmp_path / "file", content)
    (tmp_path / "empty").mkdir()
    path = config.path and config.path.format(file=file, dir=tmp_path)
    config = SourceConfig(config.kind, path, config.field, streaming=config.streaming, limit=config.limit)
    with pytest.raises(InputError, match=message) as caught:
        read_documents(config)
    assert "\n" not in str(caught.value)


def test_hugging_face_failure_names_the_offline_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    class Offline:
        @staticmethod
        def load_dataset(*args: object, **options: object) -> object:
            raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", Offline)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"ConnectionError: no route\); .*python-docs, text, jsonl") as caught:
        read_documents(SourceConfig("huggingface", "owner/name"))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        read_documents(SourceConfig("huggingface", "owner/name"))


def test_hugging_face_records_become_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Hub:
        @staticmethod
        def load_dataset(*args: object, **options: object) -> list[dict[str, str]]:
            calls.append((args, options))
            return [{"text": f"record {i}"} for i in range(5)]

    monkeypatch.setitem(sys.modules, "datasets", Hub)  # type: ignore[arg-type]
    found = read_documents(SourceConfig("huggingface", "o/n", name="cfg", streaming=True, limit=2))
    assert [document.id for document in found] == ["hf:o/n:cfg:train:0", "hf:o/n:cfg:train:1"]
    assert calls == [(("o/n", "cfg"), {"split": "train", "streaming": True})]


def test_hugging_face_package_reads_a_local_directory(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write(tmp_path / "part.jsonl", "".join(json.dumps({"body": f"record {i}"}) + "\n" for i in range(5)))
    config = SourceConfig("huggingface", str(tmp_path), field="body", streaming=True, limit=3)
    assert [document.text for document in read_documents(config)] == ["record 0", "record 1", "record 2"]
    with pytest.raises(InputError, match="did you mean 'body'"):
        read_documents(SourceConfig("huggingface", str(tmp_path), field="bodi", streaming=True, limit=3))


def test_hugging_face_stream_that_breaks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking:
        @staticmethod
        def load_dataset(*args: object, **options: object) -> Iterator[dict[str, str]]:
            yield {"text": "one"}
            raise TimeoutError("read timed out")

    monkeypatch.setitem(sys.modules, "datasets", Breaking)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="TimeoutError: read timed out"):
        read_documents(SourceConfig("huggingface", "o/n"))


def test_source_from_name(tmp_path: Path) -> None:
    assert source_from_name("python-docs").kind == "python-docs"
    assert source_from_name("a/b.jsonl") == SourceConfig("jsonl", "a/b.jsonl")
    assert source_from_name("a/b.txt") == SourceConfig("text", "a/b.txt")


def test_topics_hold_every_held_out_name() -> None:
    names = [document.id for document in topics()]
    assert set(HELD_OUT_TOPICS) <= set(names)
    assert names == sorted(names)


def test_docstrings_are_read_without_importing(tmp_path: Path) -> None:
    (tmp_path / "pkg" / "test").mkdir(parents=True)
    body = '''
        """About the module: {filler}"""
        raise SystemExit("imported")
        class A:
            """About A."""
            async def run(self, x: int = 3, *rest, key="a"):
                """About run."""
            def silent(self): pass
    '''
    source = textwrap.dedent(body).replace("{filler}", "words " * 40)
    write(tmp_path / "pkg" / "__init__.py", source)
    write(tmp_path / "pkg" / "test" / "test_a.py", source)
    write(tmp_path / "broken.py", "def (")
    write(tmp_path / "binary.py", b'"""\xff\x00"""')
    found = docstrings(tmp_path)
    assert [document.id for document in found] == ["stdlib:pkg"]
    assert found[0].text.endswith("class A\n\nAbout A.\n\nrun(self, x: int=3, *rest, key='a')\n\nAbout run.\n")


def test_docstrings_of_the_real_library(tmp_path: Path) -> None:
    import json.decoder as decoder

    folder = tmp_path / "json"
    folder.mkdir()
    write(folder / "decoder.py", Path(decoder.__file__).read_bytes())
    text = docstrings(tmp_path)[0].text
    first_line = (decoder.JSONDecoder.__doc__ or "").strip().splitlines()[0]
    assert f"class JSONDecoder\n\n{first_line}" in text


def test_python_docs_hold_out_topics_only() -> None:
    found = split_source(SourceConfig(docstrings=False))
    assert {document.id for document in found.held_out} == set(HELD_OUT_TOPICS)
    assert found.removed_characters > 0
    assert not any(shares_passage(a.text, b.text) for a in found.train for b in found.held_out)


words = st.lists(st.sampled_from(["a", "B", "c,", "``d``"]), min_size=0, max_size=30).map(" ".join)
texts = st.lists(words, min_size=1, max_size=6).map("\n\n".join)


@given(train=st.lists(texts, min_size=1, max_size=5), held=st.lists(texts, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_guard_leaves_no_shared_passage(train: list[str], held: list[str]) -> None:
    documents = [Document(f"t{i}", text) for i, text in enumerate(train)] + [Document("safe", "nothing shared")]
    held_out = [Document(f"h{i}", text) for i, text in enumerate(held)]
    result = guard(documents, held_out)
    assert not any(shares_passage(a.text, b.text) for a in result.train for b in held_out)
    before = sum(len(document.text) for document in documents)
    assert before - sum(len(document.text) for document in result.train) == result.removed_characters
    untouched = {d.id: d.text for d in documents if not any(shares_passage(d.text, h.text) for h in held_out)}
    kept = {document.id: document.text for document in result.train}
    assert all(kept[name] == text for name, text in untouched.items() if text.strip())


def test_guard_removes_the_paragraph_and_counts_it() -> None:
    passage = "The *quick* brown\nfox jumps over the lazy dog"
    held = [Document("h", "x the quick brown fox JUMPS over the lazy dog. y")]
    train = [Document("a", f"keep this\n\n{passage} indeed\n\nand this"), Document("b", passage)]
    result = guard([*train, Document("c", "short quick brown fox jumps over the lazy cat")], held)
    assert [(d.id, d.text) for d in result.train] == [
        ("a", "keep this\n\nand this"),
        ("c", "short quick brown fox jumps over the lazy cat"),
    ]
    assert (result.removed_documents, result.removed_characters) == (1, 2 * len(passage) + len(" indeed\n\n"))


def test_split_by_hash_does_not_move_documents() -> None:
    small, large = toy_documents(50), toy_documents(50) + toy_documents(200, seed=1)
    few, many = (({d.id for d in split(part, 0.2).held_out}) for part in (small, large))
    assert few == {name for name in many if name.startswith("toy:0:")}
    assert 30 <= len(many) <= 70  # 250 * 0.2, six standard deviations


def test_a_share_of_0_holds_nothing_out_and_removes_nothing() -> None:
    documents = toy_documents(3)
    assert split([*documents, *documents], 0.0) == Split((*documents, *documents), (), 0, 0)


def test_split_holds_out_at_least_one_and_refuses_an_empty_side() -> None:
    assert len(split(toy_documents(4), 1e-9).held_out) == 1
    with pytest.raises(InputError, match="none has text that is not held out"):
        split(toy_documents(1))
    with pytest.raises(InputError, match="nope not found"):
        split(toy_documents(3), ids=["nope"])
    for share in (1.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="held-out share"):
            split(toy_documents(3), share)


def test_text_held_out_by_one_source_is_not_trained_on_by_another(tmp_path: Path) -> None:
    lines = [" ".join(f"w{i}x{j}" for j in range(12)) for i in range(40)]
    for name, prefix in (("a.jsonl", ""), ("b.jsonl", "other start ")):
        write(tmp_path / name, "\n".join(json.dumps({"text": prefix + line}) for line in lines))
    parts = split_sources(tuple(SourceConfig("jsonl", str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl")), 0.2)
    held = [document for part in parts for document in part.held_out]
    assert not any(shares_passage(a.text, b.text) for part in parts for a in part.train for b in held)
    assert sum(part.removed_documents for part in parts) > 0


def test_tokens_end_each_document_once() -> None:
    ends_itself = TextEncoder(lambda text: [*text.encode(), EOS], EOS)
    documents = [Document("a", "xy"), Document("b", "z")]
    for encoder in (byte_encoder(), ends_itself):
        found = tokenize(documents, encoder)
        assert found.tokens.tolist() == [120, 121, EOS, 122, EOS]
        assert found.starts.tolist() == [0, 3, 5]
    with pytest.raises(InputError, match="no documents"):
        tokenize([], byte_encoder())


def test_token_cache_is_keyed_by_text_and_tokenizer(tmp_path: Path) -> None:
    calls = []

    def encode(text: str) -> list[int]:
        calls.append(text)
        return list(text.encode())

    documents = toy_documents(5)
    encoder = TextEncoder(encode, EOS, "toy-1")
    first = tokenize(documents, encoder, tmp_path)
    made = len(calls)
    again = tokenize(documents, encoder, tmp_path)
    assert (made, len(calls)) == (5, 5)
    assert np.array_equal(first.tokens, again.tokens) and first.fingerprint() == again.fingerprint()
    tokenize(documents, TextEncoder(encode, EOS, "toy-2"), tmp_path)
    tokenize(documents, TextEncoder(encode, EOS + 1, "toy-1"), tmp_path)
    tokenize(documents[:-1], encoder, tmp_path)
    assert len(calls) == 5 + 5 + 5 + 4
    assert sorted(path.name[0] == "." for path in tmp_path.iterdir()) == [False] * 4


def test_damaged_token_cache_is_named(tmp_path: Path) -> None:
    tokenize(toy_documents(5), byte_encoder(), tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "tokens.npy").write_bytes(b"garbage")
    with pytest.raises(InputError, match="damaged"):
        tokenize(toy_documents(5), byte_encoder(), tmp_path)


def test_build_data_is_the_same_with_and_without_cache(tmp_path: Path) -> None:
    source = SourceConfig(docstrings=False, limit=30)
    plain = build_data(DataConfig((source,), 64, seed=3), byte_encoder())
    cached = build_data(DataConfig((source,), 64, seed=3, cache_dir=str(tmp_path)), byte_encoder())
    assert plain.stream.batch(7, 4).input_ids.equal(cached.stream.batch(7, 4).input_ids)
    assert len(plain.held_out) == len(cached.held_out) > 0
    with pytest.raises(InputError, match=r"data\.sources"):
        build_data(DataConfig(()), byte_encoder())
