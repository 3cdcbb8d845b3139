"""The audit says what was printed, is bounded, and the summary tells how a run stands; names are unambiguous."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wrinklefree.train import audit
from wrinklefree.train.compose import compose
from wrinklefree.train.naming import learning_rate, run_id, run_name
from wrinklefree.train.position import Position


def events(out: Path) -> list[dict[str, str]]:
    return [json.loads(path.read_text()) for path in sorted((out / "audit").glob("*.json"))]


def test_a_note_is_printed_and_kept_word_for_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with audit.open_summary(tmp_path, {"stage": "toy"}) as summary:
        audit.note("fallback", "A thing is OFF. Training continues.")
        summary.see(Position(step=3, tokens=12, seconds=1.5), {"loss": 2.5, "bad": float("nan")})
        summary.write("COMPLETED")
    (event,) = [event for event in events(tmp_path) if event["type"] == "fallback"]
    assert event["message"] in capsys.readouterr().err.splitlines()
    names = [path.name for path in (tmp_path / "audit").iterdir() if "fallback" in path.name]
    assert len(names) == 1 and len(names[0].removesuffix(".json").rpartition("_")[2]) == 8
    values = json.loads((tmp_path / "summary.json").read_text())
    assert (values["status"], values["steps"], values["tokens"], values["fallbacks"]) == ("COMPLETED", 3, 12, 1)
    assert values["figures"] == {"loss": 2.5, "bad": None} and values["stage"] == "toy"


def test_a_failure_is_recorded_with_its_message_and_counts_go_on(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), audit.open_summary(tmp_path, {}):
            audit.note("fallback", "one")
            raise RuntimeError("the disk\nis gone")
    values = json.loads((tmp_path / "summary.json").read_text())
    assert values["status"] == "FAILED" and values["fallbacks"] == 2 and values["events"]["training_failed"] == 2
    assert [event["message"] for event in events(tmp_path) if event["type"] == "training_failed"] == [
        "the disk is gone"
    ] * 2


def test_a_run_that_was_killed_is_noticed_by_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "summary.json").write_text('{"status": "RUNNING", "steps": 7}')
    with audit.open_summary(tmp_path, {}):
        assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 7
    assert "it was probably killed" in capsys.readouterr().err
    assert "training_interrupted" in [event["type"] for event in events(tmp_path)]


def test_the_audit_is_bounded_in_number_and_age(tmp_path: Path) -> None:
    old = tmp_path / "audit" / "20200101T000000.000000Z_fallback_00000000.json"
    old.parent.mkdir()
    old.write_text("{}")
    for i in range(105):
        audit.write_event(tmp_path, "fallback", f"number {i}")
    kept = [event["message"] for event in events(tmp_path)]
    assert kept == [f"number {i}" for i in range(5, 105)] and not old.exists()
    with pytest.raises(ValueError, match="not one of"):
        audit.write_event(tmp_path, "other", "x")


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.4e-3, "2.4e-3"), (2.4e3, "2.4e3"), (0.02, "2e-2"), (1e-4, "1e-4"), (1.0, "1e0"), (1.25e-5, "1.25e-5")],
)
def test_a_learning_rate_keeps_the_sign_of_its_exponent(value: float, text: str) -> None:
    assert learning_rate(value) == text and float(text) == value


def test_run_names_tell_model_stage_optimizer_rate_and_batch() -> None:
    base = ["training=stage1_9_layerwise", "model=smollm2-135m-instruct", "optimizer=adamw", "optimizer.lr=0.0024"]
    recipe = compose(base)
    name = run_name(recipe)
    batch = recipe.batch.micro_batch * recipe.batch.accumulation
    assert name == f"smollm2-135m-instruct-s1.9-adamw-lr2.4e-3-bs{batch}-{recipe.identity[:4]}" and len(name) <= 64
    assert run_name(compose([*base, "seed=1"])) != name == run_name(compose([*base, "budget.max_steps=3"]))
    long = run_name(compose(["training=stage1_9_layerwise", "model=local", f"model.source=a/{'m' * 90}"]))
    assert len(long) == 64 and long.startswith("mmmm") and "-s1.9-" in long


def test_a_tracker_knows_a_resumed_run_by_the_same_id(tmp_path: Path) -> None:
    first = run_id(tmp_path)
    assert run_id(tmp_path) == first and len(first) == 8


def test_how_a_step_is_divided_does_not_make_another_run() -> None:
    def identity(micro: int, accumulation: int, devices: int) -> str:
        sizes = [f"batch.micro_batch={micro}", f"batch.accumulation={accumulation}", f"device.devices={devices}"]
        return compose(["training=stage2_pretrain", *sizes]).identity

    assert identity(8, 4, 1) == identity(4, 4, 2) == identity(2, 8, 2) != identity(8, 4, 2)
