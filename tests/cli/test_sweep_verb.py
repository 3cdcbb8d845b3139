"""`wf sweep` where nothing has to run: dry runs, refusals, how a study stands, and what a worker gets of a machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="not checked: wf sweep (the extra [sweep] is missing)")
pytest.importorskip("scipy", reason="not checked: wf sweep (the extra [sweep] is missing)")

from wrinklefree.cli.main import main
from wrinklefree.sweep.study import share_of

_SPACE = """
name: toy
method: random
constants: {program: "true"}
parameters: {x: {type: float, low: 0, high: 1}}
stages: [{name: s, run: ["{program}", "{x}"], figures: {y: y}}]
objectives: {s.y: minimize}
"""


@pytest.fixture
def space(tmp_path: Path) -> str:
    path = tmp_path / "space.yaml"
    path.write_text(_SPACE)
    return str(path)


def test_a_dry_run_shows_the_first_trial_and_leaves_nothing(space: str, tmp_path: Path) -> None:
    words = ["sweep", space, "--set", "program=echo", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "j")]
    assert main([*words, "--dry-run"]) == 0
    ((stage, command),) = [tuple(each.values()) for each in json.loads((tmp_path / "j").read_text())["first_trial"]]
    assert stage == "s" and command[0] == "echo" and 0 <= float(command[1]) < 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "programm=x"], "did you mean 'program'"),
        (["--set", "program"], "allowed is NAME=VALUE"),
        (["--status"], "holds no study"),
        (["--storage", "sqlite://"], "in memory"),
    ],
)
def test_what_is_wrong_is_one_line(
    space: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(["sweep", space, "--out", str(tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err


def test_a_study_without_a_good_trial_is_a_failure_and_says_what_happened(
    space: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", space, "--out", str(tmp_path / "out"), "--trials", "2"]
    assert main(words) == 1
    assert "s.y" in capsys.readouterr().err  # the figure that `true` does not write
    assert main([*words, "--status", "--json", str(tmp_path / "j")]) == 0
    result = json.loads((tmp_path / "j").read_text())
    assert result["states"]["failed"] == 2 and result["best"] == [] and result["ended"]
    assert main(["sweep", space, "--out", str(tmp_path / "out"), "--seed", "9"]) == 2
    assert "holds another space under this name" in capsys.readouterr().err


def test_workers_share_gpus_and_threads() -> None:
    four = {"CUDA_VISIBLE_DEVICES": "4,5,6,7", "OMP_NUM_THREADS": "3"}
    assert [share_of(i, 2, four)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["4,6", "5,7"]
    assert [share_of(i, 5, four)["CUDA_VISIBLE_DEVICES"] for i in (3, 4)] == ["7", "4"]
    assert share_of(0, 2, four)["OMP_NUM_THREADS"] == "3"
    alone = share_of(0, 10_000, {"CUDA_VISIBLE_DEVICES": ""})
    assert alone == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
