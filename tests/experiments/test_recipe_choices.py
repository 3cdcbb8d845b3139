"""The parts of experiments/recipe-choices that could be wrong without anybody noticing: what is shared, what is run
again, and the arithmetic of the report. Training is replaced by a stand-in; the overrides are composed as `wf train`
would.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parents[2] / "experiments" / "recipe-choices"
NAMES = (
    "arms", "choices", "settings", "tables", "texts", "small_model", "runner", "figures", "pictures", "report_choices",
    "report", "run",
)  # fmt: skip


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of the directory, whose names other experiments have, too."""
    kept = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    monkeypatch.syspath_prepend(str(HERE))
    found = {name: importlib.import_module(name) for name in NAMES}
    yield found
    for name in NAMES:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


def stand_in(work: Path, calls: list[list[str]], fails: str = "", events: dict[str, int] | None = None) -> Any:
    """What `Runner.wf` does, without a process: a finished run, or one that ``fails`` at this override."""

    def wf(self: Any, log: str, *words: str) -> int:
        calls.append(list(words))
        (work / log).parent.mkdir(exist_ok=True)
        (work / log).write_text("Loading the teacher t.\n")
        out = Path(words[-1])
        if words[0] == "convert":
            Path(words[2]).mkdir()
            Path(words[-1]).write_text("{}")
            return 0
        if words[0] == "eval":
            found = {"loss": 4.0, "perplexity": math.e**4, "bits_per_byte": 1.0, "tokens": 8, "window": 8, "stride": 8}
            agreement = {"agreement": {"kl": 0.5, "top1": 0.25, "flips": 0.1}} if "--teacher" in words else {}
            out.write_text(json.dumps(found | agreement))
            return 0
        out.mkdir(parents=True)
        failed = bool(fails) and fails in words
        status = {"status": "FAILED" if failed else "COMPLETED", "events": events or {}}
        (out / "summary.json").write_text(json.dumps(status))
        (out / "recipe.yaml").write_text("seed: 0\n")
        rows = [{"step": n, "next_token/value": 5.0 - n, "seconds": 2.0 * n, "grad_norm": None} for n in (1, 2)]
        (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return 1 if failed else 0

    return wf


def test_every_command_is_one_that_wf_train_takes(notes: dict[str, ModuleType]) -> None:
    from wrinklefree.train.compose import compose

    sizes = (
        "budget.",
        "optimizer.muon_lr",
        "strength.warmup",
        "data.sequence",
        "batch.",
        "device.",
        "log.",
        "optimizer.muon_dtype",
    )
    seen = set()
    for scale in (notes["settings"].SCALES["gpu"], notes["settings"].SCALES["smoke"]):
        for arm in (arm for arms in notes["tables"].TABLES.values() for arm in arms(scale)):
            for stage in (stage for stage in arm.stages if stage.verb == "train"):
                kind = {word for word in stage.overrides if not word.startswith(sizes)}
                # Compositions take a tenth of a second each: one of every kind, whatever its sizes and machine.
                if frozenset(kind) not in seen:
                    seen.add(frozenset(kind))
                    recipe = compose([*stage.overrides, "seed=1", "model=some/model"])
                    assert recipe.seed == 1 and recipe.steps, arm.name
    assert len(seen) > 8


def test_arms_share_what_begins_alike_and_nothing_is_run_twice(
    notes: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = notes["settings"].SCALES["gpu"]
    tables, calls = notes["tables"], []
    (tmp_path / "text").mkdir()
    monkeypatch.setattr(notes["runner"].Runner, "wf", stand_in(tmp_path, calls))
    runner = notes["runner"].Runner(tmp_path, scale)
    by_name = {arm.name: arm for arm in (*tables.stage1_9_length(scale), *tables.scheduling(scale))}

    first = runner.run(by_name["200+200"], 0)
    assert [call[0] for call in calls] == ["train", "eval", "train", "eval"]
    assert f"model={tmp_path / 'stages' / first['stages'][0]['key']}" in calls[2]  # handed over
    assert "seed=0" in calls[0] and "seed=1000" in calls[2]  # and not the text that Stage 1.9 has just read
    shipped = runner.run(by_name["lambda in stage 2 only"], 0)  # another table's name for the same
    assert shipped["stages"] == first["stages"] and len(calls) == 4
    neither = runner.run(by_name["neither"], 0)  # begins alike, goes on otherwise
    assert neither["stages"][0] == first["stages"][0] and neither["stages"][1]["key"] != first["stages"][1]["key"]
    assert [call[0] for call in calls[4:]] == ["train", "eval"]
    assert runner.run(by_name["200+200"], 1)["stages"][0]["key"] != first["stages"][0]["key"]  # another seed

    stage = first["stages"][0]
    assert stage["curve"]["seconds"] == [2.0, 2.0] and stage["curve"]["ce"] == [4.0, 3.0]
    assert stage["provenance"]["machine"]["cores"] and stage["recipe"] == ["seed: 0"]


def test_a_calibration_is_made_once_for_all_seeds_and_takes_no_seed_of_its_own(
    notes: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale, calls = notes["settings"].SCALES["gpu"], []
    (tmp_path / "text").mkdir()
    monkeypatch.setattr(notes["runner"].Runner, "wf", stand_in(tmp_path, calls))
    runner = notes["runner"].Runner(tmp_path, scale)
    by_name = {arm.name: arm for arm in notes["tables"].TABLES["choices"](scale)}

    first = runner.run(by_name["the recipe"], 0)
    assert [call[0] for call in calls] == ["convert", "eval", "train", "eval"]
    assert calls[0][2] == str(tmp_path / "stages" / first["stages"][0]["key"])  # where it is written, and
    assert f"model={calls[0][2]}" in calls[2] and "seed=0" in calls[2]  # what learns; the first seed is the text's
    assert "--teacher" in calls[1] and first["stages"][1]["held_out"]["kl"] == 0.5
    second, plain = runner.run(by_name["the recipe"], 1), runner.run(by_name["plain rounding"], 0)
    assert [call[0] for call in calls[4:]] == ["train", "eval", "train", "eval"]  # no calibration again
    assert second["stages"][0] == first["stages"][0] and "seed=1" in calls[4]
    assert "seed=0" in calls[6] and len(plain["stages"]) == 1  # the same text as the recipe's


def test_every_choice_differs_from_the_recipe_in_one_thing(notes: dict[str, ModuleType]) -> None:
    arms = {arm.name: arm for arm in notes["tables"].TABLES["choices"](notes["settings"].SCALES["gpu"])}
    recipe = arms["the recipe"]
    may = {
        "objective": {"objectives.logits_kd.weight", "objectives.next_token.weight"},
        "optimizer": {"optimizer", "optimizer.lr", "optimizer.muon_lr"},
        "attention relation": {"objectives.attention_relation"},
        "strength": {"strength.kind", "strength.warmup_ratio"},
        "start": {"model.granularity", "model.subln", "optimizer.lr"},
    }
    for arm in (arm for arm in arms.values() if arm is not recipe):
        other = arms[str(arm.facts["against"])]
        words = {word.partition("=")[0] for word in {*arm.stages[-1].overrides} ^ {*other.stages[-1].overrides}}
        assert words <= may.get(str(arm.facts["question"]), set()), arm.name
        assert bool(words) != (arm.stages[:-1] != other.stages[:-1]) or arm.facts["question"] == "start", arm.name


def test_a_stage_that_diverges_ends_its_arm_and_is_kept_and_another_failure_is_no_result(
    notes: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale, runner, calls = notes["settings"].SCALES["gpu"], notes["runner"], []
    arm = notes["tables"].stage1_9_length(scale)[0]
    for name, events in (("diverged", {"nonfinite_step": 5}), ("full", {"training_failed": 1})):
        work = tmp_path / name
        (work / "text").mkdir(parents=True)
        monkeypatch.setattr(runner.Runner, "wf", stand_in(work, calls, "training=stage1_9_layerwise", events))
        calls.clear()
        if name == "full":
            with pytest.raises(SystemExit, match="failed"):
                runner.Runner(work, scale).run(arm, 0)
            assert not list(work.rglob("result.json"))
            continue
        result = runner.Runner(work, scale).run(arm, 0)
        assert [stage["status"] for stage in result["stages"]] == ["FAILED"] and len(calls) == 1
        assert runner.Runner(work, scale).run(arm, 0) == result and len(calls) == 1
        assert math.isnan(notes["figures"].final_loss(result))


def test_statistics_of_the_report(notes: dict[str, ModuleType]) -> None:
    figures = notes["figures"]

    def run(seed: int, loss: float, steps: int = 2, cpu: float = 1.0) -> dict[str, Any]:
        stage = {"name": "stage 2", "held_out": {"loss": loss}, "curve": {"step": [0] * steps}, "cpu_seconds": cpu}
        return {"seed": seed, "stages": [stage]}

    assert figures.spread([1.0, 2.0, 3.0]) == "2.000 ± 1.000" and figures.spread([0.5], signed=True) == "+0.500"
    assert figures.spread([math.nan]) == "-"
    assert figures.paired([run(0, 3.0), run(2, 5.0)], [run(2, 4.0), run(0, 1.0)]) == [2.0, 1.0]
    points = [(4.0, 1.0), (1.0, 3.0)]
    assert figures.interpolated(points, 2.0) == pytest.approx(2.0) and math.isnan(figures.interpolated(points, 5.0))

    # Which rate is best is decided on the seeds that all rates have.
    def tried(rate: float, seed: int, kl: float) -> dict[str, Any]:
        held = {"loss": 4.0, "kl": kl, "top1": 0.5}
        stage = {"name": "distillation", "held_out": held, "curve": {"logits_kd/value": [1.0, 2.0]}}
        return {"seed": seed, "facts": {"of": "AdamW", "rate": rate}, "stages": [stage]}

    runs = {"a": [tried(1.0, 0, 0.3)], "b": [tried(2.0, 0, 0.2), tried(2.0, 1, 9.0)], "c": [tried(3.0, 0, 0.4)]}
    lines = notes["report_choices"].tried_rates(runs)
    assert [line for line in lines if "best" in line] == [line for line in lines if "| 2 (best) |" in line] != []
    del runs["a"]
    assert any("2 (best, at the edge)" in line for line in notes["report_choices"].tried_rates(runs))
    # Three seconds of start, half a second a step.
    runs = [run(0, 1.0, steps=n, cpu=3.0 + 0.5 * n) for n in (10, 20, 40)]
    assert figures.step_seconds(runs, "stage 2") == pytest.approx(0.5)
