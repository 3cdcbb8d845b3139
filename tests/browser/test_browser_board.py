"""`wf board` as a process, with runs that grow while it is looked at."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from looking import Opened, until


def row(step: int, loss: float) -> str:
    share = step / 100
    return json.dumps({
        "step": step, "loss": loss, "a/value": loss, "a/share": share, "b/value": 1.0, "b/share": 1 - share,
        "lambda": share, "lr": 1e-3, "ternary/zeros": 0.4, "tokens": step * 100, "tokens_per_second": 90.5,
        "seconds": step * 2.0, "progress": share, "grad_norm": 1.5, "nonfinite": 0, "clipped": 0, "odd/figure": 3.25,
    }) + "\n"  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(row(step, 3 / step) for step in range(1, 21)))
    return [tmp_path / "first", tmp_path / "second"]


@pytest.fixture
def board(runs: list[Path]) -> Iterator[str]:
    code = "import sys; from wrinklefree.cli.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "board", *map(str, runs), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    found = re.search(r"http://[^ ]+/", process.stdout.readline())
    assert found is not None
    yield found[0]
    process.send_signal(signal.SIGTERM)
    process.stdout.close()
    assert process.wait(20) in (0, -signal.SIGTERM)


def test_runs_over_each_other_and_live(opened: Opened, board: str, runs: list[Path]) -> None:
    page = opened.page
    page.goto(board)
    page.wait_for_selector(".chart path.line")
    titles = page.locator(".chart h2").all_text_contents()
    for title in (
        "Loss",
        "Shares of the loss",
        "Lambda",
        "Learning rate",
        "Zero weights",
        "Tokens a second",
        "odd/figure",
    ):
        assert title in titles
    loss = page.locator(".chart", has=page.locator("h2", has_text=re.compile("^Loss$")))
    assert loss.locator(":scope > svg path.line").count() == 2
    assert loss.locator(".keys span").all_text_contents()[0].startswith("first")
    page.locator(".tools input[name=smooth]").fill("0")
    with (runs[0] / "metrics.jsonl").open("a") as stream:
        stream.write(row(21, 0.125))
    until(page, "document.querySelector('.run .numbers')?.textContent?.includes('0.125')")
    assert loss.locator(".keys b").first.text_content() == "0.125"
    # A resumed run writes steps again: the newer figures count.
    with (runs[0] / "metrics.jsonl").open("a") as stream:
        stream.write(row(11, 2.5))
    until(page, "document.querySelector('.run .numbers')?.textContent?.startsWith('2.5loss11step')")
    path = loss.locator(":scope > svg path.line").first.get_attribute("d")
    assert path.count("M") + path.count("L") == 11
    page.locator(".run").nth(1).click()
    assert loss.locator(":scope > svg path.line").count() == 1
    page.mouse.move(*(lambda box: (box["x"] + box["width"] / 2, box["y"] + 90))(loss.bounding_box()))
    assert "step" in loss.locator(".at").text_content()
