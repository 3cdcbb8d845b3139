"""The block-decoding benchmark on a toy: all steps, figures that follow from others, what is refused and said so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.append(str(Path(__file__).parents[1] / "artifact"))
sys.path.append(str(Path(__file__).parents[1] / "export"))
import toy_checkpoints
from benchmarks.block_decoding import costs, report, speed
from benchmarks.block_decoding.run import main

from wrinklefree.export.export import export
from wrinklefree.models.mask_token import DiffusionMarker

pytest.importorskip("wrinklefree._native", reason="the engine is not built")
pytest.importorskip("matplotlib", reason="the picture needs matplotlib")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    toy_checkpoints.write(root / "original")
    path = toy_checkpoints.write(root / "checkpoint") / "config.json"
    config = json.loads(path.read_text())
    config["wrinklefree"]["dlm"] = DiffusionMarker(200, 16, True, "fast_dllm", "block_causal").to_json()
    path.write_text(json.dumps(config))
    export(root / "checkpoint", root / "packed", threads=1, verify=False)
    return root


def test_all_steps(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompts=1", "--tokens=12", "--repeats=2", "--cost-repeats=2", "--tasks=1", "--threads=1"]
    named = ["--way", "block t=0.5", "block t=1", "block n=2", "speculative w=1", "block t=0.9 sub=32"]
    main(
        [
            str(root / "packed"),
            "--out",
            str(root / "out"),
            "--original",
            str(root / "original"),
            "--context=256",
            *sizes,
            *named,
        ]
    )
    record = json.loads((root / "out.json").read_text())
    assert [cost["rows"] for cost in record["costs"]] == list(costs.ROWS) and record["costs"][0]["relative"] == 1.0
    assert set(record["refused"]) == {"speculative w=1", "block t=0.9 sub=32"}
    ways = {way["name"]: way for way in record["speed"]["ways"]}
    assert list(ways) == ["ar", "block t=0.5", "block t=1", "block n=2"] and len(record["prompts"]) == 2
    assert ways["ar"]["speed_up"] == ways["ar"]["like_ar"]["same"] == 1.0 and ways["ar"]["mean_rows"] == 1.0
    assert ways["block t=1"]["tokens_per_forward"] == 1.0 < ways["block n=2"]["tokens_per_forward"] <= 2.0
    for way in ways.values():
        assert way["tokens"] == sum(map(len, way["answers"])) and way["quality"]["tokens"] == way["tokens"]
        expected = way["tokens_per_forward"] / way["mean_pass_cost"]
        assert way["speed_up_by_arithmetic"] == pytest.approx(expected)
    assert {way["name"] for way in record["tasks"]["ways"]} == set(ways)
    written = (root / "out.md").read_text()
    assert all(f"| {name} |" in written for name in ways) and "speculative w=1: mode speculative" in written
    assert (root / "out.png").read_bytes()[:4] == b"\x89PNG"
    again = written
    main([str(root / "packed"), "--out", str(root / "out"), "--steps", "report"])
    assert (root / "out.md").read_text() == again


def test_a_shape_gives_costs_and_what_is_refused(root: Path) -> None:
    for words, message in (([], "give either"), (["--shape", "huge"], "--shape huge"),
                           ([str(root / "packed"), "--steps", "quality"], "needs --original")):  # fmt: skip
        with pytest.raises(SystemExit, match=message):
            main([*words, "--out", str(root / "wrong")])


def test_costs_between_and_beyond_measured_numbers() -> None:
    measured = [{"rows": 1, "relative": 1.0}, {"rows": 4, "relative": 2.5}, {"rows": 8, "relative": 4.5}]
    values = [costs.relative_cost(measured, rows) for rows in (1, 2, 4, 8, 16)]
    assert values == pytest.approx([1.0, 1.5, 2.5, 4.5, 8.5])
    assert costs.possible_speed_ups(measured)[1]["3"] == pytest.approx(3.0 / 2.5)
    assert report._table(("a", "b"), [("1", "2")]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
    assert [way.name for way in speed.ways(["speculative auto"])] == ["ar", "speculative auto"]
