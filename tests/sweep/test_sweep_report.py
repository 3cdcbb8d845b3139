"""A study's findings against plain loops, and its report: what stands in it, and that pictures show something."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sweep_toys import BOUNDED, PARAMETERS, SPACE, toy_study, toy_trials

from wrinklefree.errors import InputError
from wrinklefree.sweep import drawing
from wrinklefree.sweep.findings import Findings, importance
from wrinklefree.sweep.report import write_report
from wrinklefree.sweep.space import MAXIMIZE, MINIMIZE, Space
from wrinklefree.sweep.trial import COMPLETE, FAILED, PLANNED, RUNNING, Trial

ALL = {"history", "slices", "importance", "parallel", "front", "curves", "timeline"}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_DPI", 40)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study with trials of every kind, in a directory that was not there."""
    out = tmp_path_factory.mktemp("sweep") / "new" / "report"
    files = write_report(out, toy_study(BOUNDED))
    assert set(files) == {path.name for path in out.iterdir()}
    assert set(files) == {"report.md", "report.json", *(f"{name}.png" for name in ALL)}
    return out


def test_the_best_keeps_the_constraints() -> None:
    assert [trial.number for trial in toy_study().ranked()] == [0, 1, 2, 4, 6, 7, 8, 9, 10, 11]
    bounded = toy_study(BOUNDED)
    assert [trial.number for trial in bounded.ranked()] == [10, 11]
    assert bounded.best_so_far() == [(10, 3.0), (11, 3.0)]
    assert [trial.number for trial in bounded.front()] == [10, 11]


def test_a_figure_that_is_missing_or_not_finite_counts_nowhere() -> None:
    trials = [replace(trial, state=COMPLETE) for trial in toy_trials()[:4]]
    trials[0] = replace(trials[0], figures={"train.loss": math.nan, "export.bytes": 1.0})
    trials[1] = replace(trials[1], figures={"train.loss": math.inf, "export.bytes": 1.0})
    study = Findings(SPACE, tuple(trials))
    assert [trial.number for trial in study.ranked()] == [2]
    trials[2] = replace(trials[2], figures={"train.loss": 1.0})
    assert Findings(SPACE, tuple(trials)).front() == []


figures = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))


@given(st.lists(figures, max_size=12), st.tuples(*[st.sampled_from([MINIMIZE, MAXIMIZE])] * 3))
@settings(max_examples=150, deadline=None)
def test_front_and_best_so_far_equal_plain_loops(rows: list[tuple[int, int, int]], ways: tuple[str, ...]) -> None:
    names = ("a", "b", "c")
    space = Space("toy", PARAMETERS, (), dict(zip(names, ways, strict=True)))
    trials = [
        Trial(i, {}, COMPLETE, figures={n: float(v) for n, v in zip(names, row, strict=True)})
        for i, row in enumerate(rows)
    ]
    study = Findings(space, tuple(trials))

    def better(x: float, y: float, way: str) -> bool:
        return x < y if way == MINIMIZE else x > y

    expected = []
    for i, mine in enumerate(rows):
        beaten = False
        for other in rows:
            no_worse = not any(better(mine[k], other[k], ways[k]) for k in range(3))
            beaten |= no_worse and any(better(other[k], mine[k], ways[k]) for k in range(3))
        if not beaten:
            expected.append(i)
    assert sorted(trial.number for trial in study.front()) == expected
    first = [float(row[0]) for row in rows]
    choose = min if ways[0] == MINIMIZE else max
    assert study.best_so_far() == [(i, choose(first[: i + 1])) for i in range(len(first))]


def _random_study(seed: int, value: str, trials: int = 40) -> Findings:
    generator = np.random.default_rng(seed)
    made = []
    for number in range(trials):
        rate, deep, idle = generator.random(), bool(generator.random() < 0.5), float(generator.random())
        values = {"rate": 10 ** (-4 + 2 * rate), "deep": deep, "idle": idle}
        if deep:
            values["kind"] = "linear" if generator.random() < 0.5 else "cosine"
        worth = {
            "rate": (rate - 0.5) ** 2,  # neither rising nor falling
            "kind": 1.0 * (values.get("kind") == "linear"),
            "noise": 0.0,
        }[value]
        loss = 2 + worth + 0.01 * generator.standard_normal()
        made.append(Trial(number, values, COMPLETE, figures={"train.loss": loss, "export.bytes": 1.0}))
    return Findings(SPACE, tuple(made))


def test_importance_finds_what_matters() -> None:
    for name in ("rate", "kind"):
        first, *others = importance(_random_study(1, name))
        assert first.name == name and first.shown and first.share > 0.7
        assert all(other.share < 0.5 for other in others if other.name != "deep")


def test_importance_of_noise_is_shown_as_seldom_as_promised() -> None:
    """The mark is the 95 % quantile: of 80 parameters without effect 4 should stand above it; 12 is 4.1 sd more."""
    found = [each.shown for seed in range(20) for each in importance(_random_study(seed, "noise"), seed)]
    assert len(found) == 80 and sum(found) <= 12


def test_one_diverged_trial_changes_no_importance() -> None:
    study = _random_study(1, "rate")
    worst = max(study.trials, key=study.value)
    diverged = replace(worst, figures={"train.loss": 1e9, "export.bytes": 1.0})
    others = tuple(diverged if trial is worst else trial for trial in study.trials)
    assert importance(replace(study, trials=others)) == importance(study)


def test_a_report_has_everything(report: Path) -> None:
    document = json.loads((report / "report.json").read_text(), parse_constant=pytest.fail)
    assert document["trials_by_state"] == {"complete": 10, "failed": 1, "stopped": 1}
    assert document["best"]["number"] == 10 and document["best"]["repeat"] == ["wf train # 10"]
    assert document["lost"] == 1 and document["workers"] == ["w0", "w1", "w9"]
    assert document["seconds"] == 119.0 and len(document["trials"]) == 12
    assert document["fingerprint"] == BOUNDED.fingerprint
    text = (report / "report.md").read_text()
    for words in (
        "the least `train.loss` and the least `export.bytes`, with `export.bytes <= 900`",
        "| trial | train.loss | export.bytes | rate | deep | kind | idle |",
        "| 10 | 3 | 900 | 0.0028925 | true | cosine | 0.5 |",
        "wf train # 10",
        "| 3 | ValueError: a\\|b | - | - |",
        "| 5 | above the limit | 4 | - |",
        "claimed (w9), lost (w9), claimed (w1), complete (w1)",
        "![The search](history.png)",
        "Trials 10, 11.",
    ):
        assert words in text


def test_pictures_show_something(report: Path) -> None:
    for name in ALL:
        pixels = np.asarray(Image.open(report / f"{name}.png").convert("L"))
        assert pixels.shape[0] > 50 and (pixels < 200).mean() > 0.003, name


@pytest.mark.parametrize(
    ("trials", "pictures", "words"),
    [
        ([], set(), "No trial is complete."),
        ([Trial(0, {"rate": 1e-3, "deep": False, "idle": 0.1}, PLANNED)], set(), "1 planned"),
        ([Trial(0, {"rate": 1e-3, "deep": False, "idle": 0.1}, FAILED, error="x")], set(), "## Failed"),
        (toy_trials()[:1], {"history", "front", "curves"}, "it needs 8 complete trials"),
        ([replace(toy_trials()[0], state=RUNNING, figures={})], {"curves"}, "1 running"),
    ],
)
def test_a_report_of_a_study_that_has_just_begun(
    tmp_path: Path, trials: list[Trial], pictures: set[str], words: str
) -> None:
    (tmp_path / "timeline.png").write_bytes(b"of an earlier report")
    files = write_report(tmp_path, Findings(SPACE, tuple(trials)))
    assert {name[:-4] for name in files if name.endswith(".png")} == pictures
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    assert words in (tmp_path / "report.md").read_text()


def test_values_over_decades_and_far_points(tmp_path: Path) -> None:
    """One trial a thousand times worse, and one objective to be made large: the scale still shows the others."""
    assert drawing.far_edge([1.0, 1.1, 1.2, 9.0], True) == pytest.approx(1.0 + 4 * 0.15)
    assert drawing.far_edge([1.0, 1.1, 1.2, 9.0], False) is None
    assert drawing.far_edge([9.0, 8.9, 8.8, 1.0], False) == pytest.approx(9.0 - 4 * 0.15)
    assert drawing.far_edge([1.0, 1.1, 1000.0], True) is None and drawing.spans_decades([1.0, 1000.0])
    assert not drawing.spans_decades([-1.0, 1000.0])
    ways = {"train.loss": MAXIMIZE, "export.bytes": MAXIMIZE}
    trials = list(toy_trials())
    trials[0] = replace(trials[0], figures={"train.loss": -50.0, "export.bytes": 1e6})
    trials = [replace(trial, curve=(), parameters={"idle": 0.5}) for trial in trials[:3]]
    write_report(tmp_path, Findings(replace(SPACE, objectives=ways, parameters=PARAMETERS[3:]), tuple(trials)))
    assert "the greatest `train.loss`" in (tmp_path / "report.md").read_text()


def test_a_directory_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(tmp_path / "file" / "report", toy_study())
