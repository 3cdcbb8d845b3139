"""`wf compare`: figures share a column only if they were measured alike, and what does not compare is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.cli.main import main
from wrinklefree.errors import InputError
from wrinklefree.eval.compare import compare


def a_figure(name: str, value: float, error: float | None = None, better: bool = False, **settings: Any) -> Any:
    return {"name": name, "value": value, "error": error, "higher_is_better": better, "settings": settings}


def a_result(path: Path, *figures: Any, size: int | None = 1000, **more: Any) -> Path:
    document = {"model": f"models/{path.stem}", "runs_on": "engine", "bytes": size, "figures": list(figures), **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def test_other_settings_are_another_column(tmp_path: Path) -> None:
    one = a_result(
        tmp_path / "a.json", a_figure("perplexity", 8.0, 0.5, text="t", window=512), a_figure("acc", 0.7, 0.1, True)
    )
    two = a_result(
        tmp_path / "b.json", a_figure("perplexity", 7.0, text="t", window=1024), a_figure("acc", 0.8, 0.1, True)
    )
    three = a_result(tmp_path / "c.json", a_figure("perplexity", 9.0, text="t", window=512), size=None)
    found = compare([one, two, three])
    assert [column.title for column in found.columns] == ["perplexity [1]", "perplexity [2]", "acc"]
    assert [[each and each.value for each in column.values] for column in found.columns] == [
        [8.0, None, 9.0], [None, 7.0, None], [0.7, 0.8, None],
    ]  # fmt: skip
    assert [column.best for column in found.columns] == [8.0, None, 0.8]  # a value alone is not the best of anything
    assert found.notes[0] == "perplexity was measured in 2 ways that do not compare; they differ in window."
    assert "perplexity [2]: text t, window 1024" in found.notes
    assert found.cells()[0] == ["a", "models/a", "engine", "0.0", "**8.0000 ± 0.5000**", "", "0.7000 ± 0.1000"]
    assert found.cells()[2][3:] == ["", "9.0000", "", ""]


def test_the_same_settings_in_another_order_are_one_column(tmp_path: Path) -> None:
    one = a_result(tmp_path / "x" / "a.json", a_figure("f", 1.0, window=1, text="t"))
    two = a_result(tmp_path / "y" / "a.json", a_figure("f", 2.0, text="t", window=1))
    found = compare([one, two])
    assert len(found.columns) == 1 and [row.name for row in found.rows] == ["x/a", "y/a"]


def test_results_of_before_are_read(tmp_path: Path) -> None:
    old = {"model": "m", "runs_on": "torch", "loss": 2.0, "perplexity": 7.389, "bits_per_byte": 0.9, "tokens": 100,
           "text": "python-docs", "window": 512, "stride": 512, "windows": 1}  # fmt: skip
    files = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for file, tokens in zip(files, (100, 100, 200), strict=True):
        file.write_text(json.dumps({**old, "tokens": tokens}))
    found = compare(files)
    assert [column.title for column in found.columns] == [
        "perplexity [1]", "perplexity [2]", "bits a byte [1]", "bits a byte [2]",
    ]  # fmt: skip
    assert "differ in tokens" in found.notes[0]


def test_the_verb_writes_table_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        str(
            a_result(
                tmp_path / f"{name}.json",
                a_figure("perplexity", value, 0.3, window=4),
                a_figure("a|b", value),
                size=size,
            )
        )
        for name, value, size in (("full", 5.0, 500_000_000), ("ternary", 6.0, 60_000_000))
    ]
    out = tmp_path / "out"
    assert main(["compare", *files, "--out", str(out), "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "compare.json").read_text())
    assert printed["columns"][0]["values"] == [5.0, 6.0] and printed["columns"][0]["errors"] == [0.3, 0.3]
    written = (out / "compare.md").read_text()
    rows = [line for line in written.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and len({row.replace("\\|", "").count("|") for row in rows}) == 1
    for name in ("figures.png", "bytes.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG" and f"({name})" in written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is no result; write one with wf eval"),
        ("[", "b.json"),
        ('{"model": "m", "runs_on": "torch"}', "holds no figures"),
        ('{"model": "m", "figures": []}', "damaged"),
        ('{"model": "m", "runs_on": "x", "figures": [{"name": "f"}]}', "damaged"),
    ],
)
def test_what_is_no_result(tmp_path: Path, content: str, message: str) -> None:
    good = a_result(tmp_path / "a.json", a_figure("f", 1.0))
    bad = tmp_path / "b.json"
    bad.write_text(content)
    with pytest.raises(InputError, match=message):
        compare([good, bad])
    with pytest.raises(InputError, match="at least two"):
        compare([good])
    with pytest.raises(InputError, match="given twice"):
        compare([good, good])
