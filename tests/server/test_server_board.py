"""What the board reads of runs, compared with what was written; its answers over ASGI."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrinklefree.errors import InputError
from wrinklefree.server.board.app import create_board
from wrinklefree.server.board.runs import METRICS, PIECE_BYTES, Run, find_runs


def write_run(directory: Path, rows: list[dict[str, Any]], **summary: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary:
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def read_all(run: Run) -> list[dict[str, Any]]:
    rows, start, more = [], 0, True
    while more:
        found = run.figures(start)
        rows += found["rows"]
        start, more = found["next"], found["more"]
    return rows


def test_a_long_run_comes_in_pieces_and_whole(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1 / (step + 1), "a/share": None, "filler": 10**60} for step in range(20_000)]
    run = Run("long", write_run(tmp_path, rows))
    assert (tmp_path / METRICS).stat().st_size > 2 * PIECE_BYTES
    assert run.figures(0)["more"]
    assert read_all(run) == rows


@given(cut=st.integers(0, 120))
def test_a_half_written_line_waits_for_its_end(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    directory = tmp_path_factory.mktemp("run")
    rows = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.25}, {"step": 3, "loss": 0.5}]
    write_run(directory, rows)
    whole = (directory / METRICS).read_bytes()
    (directory / METRICS).write_bytes(whole[:cut])
    run = Run("run", directory)
    first = run.figures(0)
    (directory / METRICS).write_bytes(whole)
    second = run.figures(first["next"])
    assert first["rows"] + second["rows"] == rows
    assert not second["anew"]


def test_a_run_that_begins_again_is_told_apart(tmp_path: Path) -> None:
    run = Run("run", write_run(tmp_path, [{"step": step} for step in range(1, 50)]))
    end = run.figures(0)["next"]
    write_run(tmp_path, [{"step": 1, "loss": 9.0}])
    assert run.figures(end) == {"rows": [{"step": 1, "loss": 9.0}], "next": 25, "more": False, "anew": True}
    (tmp_path / METRICS).unlink()
    assert run.figures(25) == {"rows": [], "next": 0, "more": False, "anew": True}


def test_lines_that_are_no_figures_are_left_out(tmp_path: Path) -> None:
    lines = [
        b"\xff\xfe",
        b"[1]",
        b'{"loss": 1}',
        b'{"step": "x"}',
        b"{",
        b'{"step": 4, "loss": NaN, "name": "x", "l": [1]}',
    ]
    (tmp_path / METRICS).write_bytes(b"\n".join(lines) + b"\n")
    assert read_all(Run("run", tmp_path)) == [{"step": 4, "loss": None}]


def test_status_of_finished_running_and_damaged_runs(tmp_path: Path) -> None:
    done = Run("a", write_run(tmp_path / "a", [{"step": 1}], status="COMPLETED", stage="s")).status()
    assert (done["state"], done["stage"]) == ("completed", "s")
    assert 0 <= done["age_seconds"] < 3600
    going = write_run(tmp_path / "b", [{"step": 1}])
    assert Run("b", going).status()["state"] == "running"
    (going / "summary.json").write_text("[")
    assert Run("b", going).status()["state"] == "running"


def test_find_runs_takes_directories_files_and_directories_of_runs(tmp_path: Path) -> None:
    for name in ("x/one", "y/one", "x/two"):
        write_run(tmp_path / name, [{"step": 1}])
    assert [run.name for run in find_runs([tmp_path / "x"])] == ["one", "two"]
    assert [run.name for run in find_runs([tmp_path / "x" / "two" / METRICS, tmp_path / "x"])] == ["two", "one"]
    assert [run.name for run in find_runs([tmp_path / "x/one", tmp_path / "y/one"])] == ["x/one", "y/one"]
    with pytest.raises(InputError, match=r"found no metrics\.jsonl"):
        find_runs([tmp_path])
    for index in range(33):
        write_run(tmp_path / "many" / str(index), [])
    with pytest.raises(InputError, match="at most 32"):
        find_runs([tmp_path / "many"])


def test_the_board_answers_its_own_machine_only_by_its_own_name(tmp_path: Path) -> None:
    app = create_board([Run("run", write_run(tmp_path, [{"step": 1, "loss": 2.0}]))])

    async def ask(path: str, host: str = "127.0.0.1:8001") -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}") as client:
            return await client.get(path)

    def get(path: str, host: str = "127.0.0.1:8001") -> httpx.Response:
        return asyncio.run(ask(path, host))

    page = get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    named = re.findall(r'(?:href|src)="/page/([^"]+)"', page.text)
    assert {"board.js", "dark.css", "board-dark.css"} <= set(named)
    for name in (*named, "chart.js", "series.js", "dom.js", "theme.js"):
        assert get(f"/page/{name}").status_code == 200
    assert get("/page/chat.js").status_code == 404
    assert [run["name"] for run in get("/runs").json()["runs"]] == ["run"]
    assert get("/runs/0?from=0").json()["rows"] == [{"step": 1, "loss": 2.0}]
    assert get("/runs/1").status_code == 404
    for start in ("-1", "x", "", "9" * 40, "²"):
        assert get(f"/runs/0?from={start}").status_code == 400
    assert get("/runs", host="evil.example").status_code == 400
