"""Parquet and compressed jsonl: the same documents as from plain files, few rows in memory, every error in one line."""

from __future__ import annotations

import gzip
import json
import sys
from itertools import islice
from pathlib import Path

import pytest

from wrinklefree.data.arrow import parquet
from wrinklefree.data.build import DataConfig, split_probe, split_sources
from wrinklefree.data.document import Document, SourceConfig
from wrinklefree.data.sources import read_documents, source_from_name
from wrinklefree.data.split import set_aside, shared_document, split, without_duplicates
from wrinklefree.errors import InputError, MissingDependencyError

pa = pytest.importorskip("pyarrow", reason="parquet and zstd are not checked")
pq = pytest.importorskip("pyarrow.parquet")

TEXTS = ["first\nline", "zwei ß 東京 🙂", "", "last"]


def write_parquet(path: Path, texts: list[str | None] = TEXTS, name: str = "text", kind: object = None) -> str:
    table = pa.table({"id": list(range(len(texts))), name: pa.array(texts, kind or pa.string())})
    pq.write_table(table, path, row_group_size=2)
    return str(path)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_parquet_row_is_one_document(tmp_path: Path, kind: object) -> None:
    path = write_parquet(tmp_path / "a.parquet", kind=kind)
    found = read_documents(SourceConfig("parquet", path))
    assert found == [Document(f"parquet:a.parquet:{i + 1}", TEXTS[i]) for i in (0, 1, 3)]


def test_a_directory_of_parquet_is_read_in_order_and_lazily(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_parquet(tmp_path / "sub" / "b.parquet", ["b"], "content")
    write_parquet(tmp_path / "a.parquet", ["a1", "a2"], "content")
    write_parquet(tmp_path / "z.parquet", ["z"], "other")  # never reached: a wrong schema there is not noticed
    config = SourceConfig("parquet", str(tmp_path), field="content")
    assert [d.text for d in islice(parquet(config), 3)] == ["a1", "a2", "b"]
    assert len(read_documents(SourceConfig("parquet", str(tmp_path), field="content", limit=2))) == 2
    with pytest.raises(InputError, match=r"z\.parquet: text field 'content'"):
        read_documents(config)


def test_parquet_errors_are_one_line(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", name="content")
    with pytest.raises(InputError, match="did you mean 'content'"):
        read_documents(SourceConfig("parquet", path, field="contents"))
    with pytest.raises(InputError, match="column 'id' holds int64, strings are needed"):
        read_documents(SourceConfig("parquet", path, field="id"))
    with pytest.raises(InputError, match="row 2: field 'text' is null"):
        read_documents(SourceConfig("parquet", write_parquet(tmp_path / "null.parquet", ["a", None])))
    for name, content in (("cut.parquet", Path(path).read_bytes()[:-20]), ("no.parquet", b"text"), ("0.parquet", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="damaged, or not what its name says") as caught:
            read_documents(SourceConfig("parquet", str(tmp_path / name)))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_compressed_jsonl_equals_plain_jsonl(tmp_path: Path, ending: str) -> None:
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in TEXTS).encode()
    path = tmp_path / f"d.jsonl.{ending}"
    if ending == "gz":
        path.write_bytes(gzip.compress(lines))
    else:
        path.write_bytes(pa.compress(lines, codec="zstd", asbytes=True))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "d.jsonl").write_bytes(lines)
    plain = read_documents(SourceConfig("jsonl", str(tmp_path / "plain")))
    assert (
        [d.text for d in read_documents(source_from_name(str(path)))]
        == [d.text for d in plain]
        == list(filter(None, TEXTS))
    )
    with pytest.raises(InputError, match="line 1: text field 'body'"):
        read_documents(SourceConfig("jsonl", str(path), field="body"))
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(InputError, match=r"d\.jsonl\."):
        read_documents(SourceConfig("jsonl", str(path)))
    path.write_bytes(lines)
    with pytest.raises(InputError, match="damaged, or not what its name says"):
        read_documents(SourceConfig("jsonl", str(path)))


def test_without_pyarrow_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wrinklefree\[train\]'"):
        read_documents(SourceConfig("parquet", path))


def test_names_on_the_command_line() -> None:
    kinds = {"a.parquet": "parquet", "a.jsonl.zst": "jsonl", "a.jsonl.gz": "jsonl", "a.jsonl": "jsonl", "a": "text"}
    assert {name: source_from_name(name).kind for name in kinds} == kinds


def jsonl(path: Path, texts: list[str]) -> SourceConfig:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return SourceConfig("jsonl", str(path))


def test_a_text_of_two_sources_is_kept_in_the_first(tmp_path: Path) -> None:
    common = [f"common {i}" for i in range(10)]
    one = jsonl(tmp_path / "one.jsonl", [*common, "only one", "only  one\n"])
    two = jsonl(tmp_path / "two.jsonl", [*[f" {text}" for text in common], *[f"only two {i}" for i in range(5)]])
    first, second = split_sources((one, two), 0.3)
    assert (first.duplicates, second.duplicates) == (0, 10)
    assert "10 exact duplicates of earlier sources are left out" in str(second) and "duplicates" not in str(
        split([*first.train], 0.3)
    )
    texts = [{" ".join(d.text.split()) for d in (*part.train, *part.held_out)} for part in (first, second)]
    assert (len(texts[0]), len(texts[1])) == (11, 5) and not texts[0] & texts[1]
    with pytest.raises(InputError, match="every document of it stands in the sources before it"):
        split_sources((one, one), 0.3)
    repeated = [Document("a", "x"), Document("b", "x")]
    assert [len(kept) for kept in without_duplicates([repeated, [Document("c", "x ")]])] == [2, 0]


def words(start: int, count: int = 12) -> str:
    return " ".join(f"w{start + i}" for i in range(count))


def test_a_probe_that_shares_text_with_the_held_out_is_refused(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "s.jsonl", [words(100 * i) for i in range(20)])
    splits = split_sources((source,), 0.3)
    held = splits[0].held_out[0]
    clean = jsonl(tmp_path / "clean.jsonl", [words(10_000), splits[0].train[0].text])
    kept, probe = split_probe(splits, DataConfig((source,), probe=(clean,)))
    assert [d.text for d in probe] == [words(10_000), splits[0].train[0].text]
    assert len(kept[0].train) == len(splits[0].train) - 1  # what the probe shows is not trained on
    for text in (f"before {held.text} after", held.text):
        dirty = jsonl(tmp_path / "dirty.jsonl", [words(20_000), text])
        with pytest.raises(InputError, match=r"probe: its document jsonl:dirty\.jsonl:2 shares text with a held-out"):
            split_probe(splits, DataConfig((source,), probe=(dirty,)))
    short = [Document("h", "Two words")]
    assert shared_document([Document("p", "two words!")], short) == "p" and not shared_document(short, [])


def test_a_probe_that_is_set_aside_is_nobodys(tmp_path: Path) -> None:
    sources = tuple(jsonl(tmp_path / f"{n}.jsonl", [words(1000 * n + 20 * i) for i in range(40)]) for n in (1, 2))
    splits = split_sources(sources, 0.2)
    kept, probe = split_probe(splits, DataConfig(sources, probe_share=0.2))
    texts = [{d.text for d in side} for side in (kept[0].train, kept[1].train, probe)]
    held = {d.text for part in splits for d in part.held_out}
    assert len(probe) > 3 and not texts[2] & (texts[0] | texts[1] | held)
    assert texts[0] | texts[1] | texts[2] == {d.text for part in splits for d in part.train}
    assert split_probe(splits, DataConfig(sources)) == (splits, ())
    with pytest.raises(InputError, match="none can be set aside"):
        set_aside([Document("a", "alone")], 0.5)
