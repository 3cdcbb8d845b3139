"""Traces and their pictures: the SVG is XML whatever the tokens are and shows in each frame what was decided by then.

Reference: the style sheet's animation, evaluated by a few lines here, against the trace itself.
"""

from __future__ import annotations

import io
import json
import re
import string
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.cli.main import main
from wrinklefree.errors import FormatError, InputError
from wrinklefree.eval.trace import Mark, Pass, Trace, read_trace
from wrinklefree.eval.trace_gif import gif
from wrinklefree.eval.trace_layout import COLUMNS, colour, columns, cut, lay_out, shown
from wrinklefree.eval.trace_svg import svg

HEADER = {"format": 1, "mode": "block", "block_size": 4, "sub_block": 4, "mask_token_id": 99, "prompt": [5, 6, 7],
          "texts": ["Say", " it", "\n"]}  # fmt: skip
PASSES = [
    {"pass": 1, "rows": [0, 3], "decided": [[3, 40, 0.95, "<b>"]], "waiting": [], "ms": 10.0},
    {"pass": 2, "rows": [4, 7], "decided": [[5, 41, 0.2, " & "]], "ms": 11.5,
     "waiting": [[4, 8, 0.5, "x"], [6, 9, 0.4, "then"], [7, 1, None, ""]]},
    {"pass": 3, "rows": [4, 7], "decided": [[4, 42, 1.0, "a\n"]], "ms": 12.0, "waiting": [[6, 10, 0.6, "so"]]},
    {"pass": 4, "rows": [4, 7], "decided": [[6, 43, 0.9, '"q"'], [7, 44, None, ""]], "ms": 9.0, "waiting": []},
]  # fmt: skip
END = {"end": "stop", "tokens": 5, "forwards": 4}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    return write(tmp_path / "trace.jsonl", HEADER, *PASSES, END)


def opacities(document: str, seconds: float) -> dict[str, float]:
    """Return of each animated class its opacity at a time, from the style sheet."""
    rules = r"@keyframes (\w+)\{((?:[\d.]+%\{opacity:\d\})*)\}\.\w+\{(opacity:0;)?animation:\w+ ([\d.]+)s step-end"
    found = {}
    for name, frames, hidden, total in re.findall(rules, document):
        steps = [(float(a), int(b)) for a, b in re.findall(r"([\d.]+)%\{opacity:(\d)\}", frames)]
        passed = [value for share, value in steps if share <= 100 * seconds / float(total)]
        found[name] = passed[-1] if passed else 0 if hidden else 1
    return found


def visible(document: str, seconds: float) -> list[str]:
    """Return the texts that show at a time."""
    shows = opacities(document, seconds)
    found: list[str] = []

    def walk(element: ElementTree.Element) -> None:
        classes = element.get("class", "").split()
        if not all(shows.get(name, 1) for name in classes):
            return
        if element.tag.endswith("}text"):
            found.append(element.text or "")
        for child in element:
            walk(child)

    walk(ElementTree.fromstring(document))
    return found


def test_each_frame_shows_what_was_decided_by_then(trace_file: Path) -> None:
    document = svg(read_trace(trace_file), seconds=1.0)
    always = ["confidence 0", "1", "not decided yet", "its block is finished"]
    prompt = ["block, blocks of 4: 5 tokens in 4 passes, 1.25 a pass", "Say", " it", "⏎"]
    # Guesses are cut to the width of what comes: `then` and `so` in the three columns of `"q"`.
    frames = [
        ["prompt"],
        ["pass 1  ·  1 tokens  ·  10 ms", "<b>"],
        ["pass 2  ·  2 tokens  ·  22 ms", "<b>", "x", " & ", "th…", "#1"],
        ["pass 3  ·  3 tokens  ·  34 ms", "<b>", "a⏎", " & ", "so", "#1"],
        ["pass 4  ·  5 tokens  ·  42 ms", "<b>", "a⏎", " & ", '"q"', "#44"],
    ]
    for number, expected in enumerate(frames):
        assert visible(document, number + 0.5) == [prompt[0], expected[0], *prompt[1:], *expected[1:], *always]
    assert visible(document, 1e9)[1] == frames[-1][0]


def test_without_motion_the_finished_text_shows(trace_file: Path) -> None:
    document = svg(read_trace(trace_file))
    hidden = {name for name in re.findall(r"\.(t\d+)\{opacity:0;", document)}
    texts = [e.text for e in ElementTree.fromstring(document).iter("{http://www.w3.org/2000/svg}text")
             if not hidden & set(e.get("class", "").split())]  # fmt: skip
    assert texts[1] == "pass 4  ·  5 tokens  ·  42 ms" and '"q"' in texts and "x" not in texts
    assert "prefers-reduced-motion" in document and "<script" not in document and "href" not in document


def test_layout_flows_and_knows_blocks(trace_file: Path, tmp_path: Path) -> None:
    cells = {cell.position: cell for cell in lay_out(read_trace(trace_file)).cells}
    assert [cells[p].line for p in range(8)] == [0, 0, 0, 1, 1, 2, 2, 2]  # after line breaks
    assert [(cells[p].opened, cells[p].decided, cells[p].finished) for p in (3, 4, 5, 6, 7)] == [
        (0, 1, 1), (1, 3, 4), (1, 2, 4), (1, 4, 4), (1, 4, 4)
    ]  # fmt: skip
    long = [
        {"pass": i + 1, "rows": [i, i], "decided": [[i, i, 0.5, "word"]], "waiting": [], "ms": 1} for i in range(90)
    ]
    ar = write(tmp_path / "ar.jsonl", {**HEADER, "mode": "ar", "block_size": None, "prompt": [], "texts": []}, *long)
    layout = lay_out(read_trace(ar))
    assert max(cell.column + cell.width for cell in layout.cells) <= COLUMNS and layout.lines == 5
    assert "broken off" in layout.title and "blocks" not in layout.title
    assert all(cell.finished == cell.decided == cell.position + 1 for cell in layout.cells)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=3, max_size=3), st.sampled_from(["", "a\x00<", "]]>&'\"\ud800"]))
def test_any_text_gives_xml(texts: list[str], mode: str) -> None:
    marks = [Mark(1 + i, i, 0.5, text) for i, text in enumerate([*texts, mode])]
    passes = (Pass(1, 1, 4, tuple(marks[1:]), (Mark(1, 1, None, texts[-1]),), 1.0), Pass(2, 1, 4, (marks[0],), (), 1.0))
    ElementTree.fromstring(svg(Trace(mode, 4, (texts[0],), passes, None)).encode())
    for text in texts:
        label = shown(Mark(0, 3, None, text))
        assert label and columns(label) <= 24 and "\n" not in label


def test_unfit_characters_are_replaced() -> None:
    assert shown(Mark(0, 3, None, "a\x00\ud800\u2028\ufffe\r\t")) == "a␀����"[:5] + "␍→"
    assert shown(Mark(0, 3, None, "")) == "#3" and shown(Mark(0, 3, None, "  ")) == "␣␣"
    assert cut("日本語", 5) == "日本…" and columns("日本") == 4 and columns("e\u0301") == 1
    assert colour(0.0) != colour(0.5) != colour(1.0) and colour(None) == colour(0.5)


def test_the_gif_has_a_frame_for_each_pass_in_the_colours_of_the_svg(trace_file: Path) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="GIFs need Pillow")
    with image_module.open(io.BytesIO(gif(read_trace(trace_file), 0.1))) as image:
        assert image.n_frames == 5 and image.info["loop"] == 0
        seen, durations = [], []
        for number in range(5):
            image.seek(number)
            durations.append(image.info["duration"])
            seen.append(np.asarray(image.convert("RGB")))
    assert durations == [100, 100, 100, 100, 3000]
    for frame, confidence in ((1, 0.95), (2, 0.2), (3, 1.0), (4, 0.9)):
        now, before = (int((each == colour(confidence)).all(axis=2).sum()) for each in (seen[frame], seen[frame - 1]))
        assert now > before + 100  # pixels of a cell


def test_wf_trace(trace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.svg"
    assert main(["trace", str(trace_file), str(out), "--seconds", "0.5"]) == 0
    assert "5 tokens in 4 passes" in capsys.readouterr().out
    assert out.read_text() == svg(read_trace(trace_file), 0.5)
    for words, message in (
        ([str(trace_file), str(tmp_path / "out.png")], "allowed are .svg and .gif"),
        ([str(trace_file), str(tmp_path / "no" / "out.svg")], "does not exist"),
        ([str(tmp_path / "nothing"), str(out)], "no such file"),
    ):
        assert main(["trace", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "file is empty"),
        (["{"], "line 1: cannot be read as JSON"),
        (["[" * 100_000], "line 1: cannot be read as JSON"),
        (["[1]"], "line 1: found list"),
        ([{**HEADER, "format": 2}, *PASSES], "format is 2"),
        ([HEADER, END], "holds no pass"),
        ([{**HEADER, "prompt": "abc"}, *PASSES], "line 1: prompt is 'abc'"),
        ([{**HEADER, "texts": ["a"]}, *PASSES], "texts of the prompt's 3 tokens"),
        ([{**HEADER, "mode": 3}, *PASSES], "line 1: mode is 3"),
        ([{**HEADER, "block_size": 0}, *PASSES], "line 1: block_size is 0"),
        ([HEADER, {**PASSES[0], "rows": [4, 3]}], "line 2: rows is"),
        ([HEADER, {**PASSES[0], "ms": "NaN"}], "line 2: ms is 'NaN'"),
        ([HEADER, {**PASSES[0], "pass": True}], "line 2: pass is True"),
        ([HEADER, {**PASSES[0], "decided": None}], "line 2: decided is None"),
        ([HEADER, {**PASSES[0], "decided": [[3, 4, 0.5]]}], "line 2: decided holds"),
        ([HEADER, {**PASSES[0], "decided": [[3, 4, 1.5, "a"]]}], "confidence from 0 to 1"),
        ([HEADER, {**PASSES[0], "decided": [[-3, 4, 0.5, "a"]]}], "line 2: decided holds"),
        ([HEADER, {**PASSES[0], "decided": [[2, 4, 0.5, "a"]]}], "the prompt reaches to 2"),
        ([HEADER, PASSES[0], PASSES[0]], "line 3: position 3 is decided a second time"),
        ([HEADER, *PASSES, {**END, "end": 1}], "line 6: end is 1"),
    ],
)
def test_damaged_traces_are_refused(lines: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, FormatError), match=re.escape(message)):
        read_trace(write(tmp_path / "t.jsonl", *lines))


def test_a_trace_too_long_for_a_picture_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    many = [[3 + i, 1, None, string.ascii_letters[i % 52]] for i in range(9000)]
    path = write(tmp_path / "t.jsonl", HEADER, {**PASSES[0], "decided": many})
    with pytest.raises(InputError, match="9000 tokens are more than"):
        svg(read_trace(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="not UTF-8 at byte 0"):
        read_trace(path)
