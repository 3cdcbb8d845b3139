"""Metrics: JSONL always, trackers offline, a missing Weights & Biases key is loud and harmless."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from train_toys import toy_model

from wrinklefree.errors import InputError, MissingDependencyError
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.train.metrics import TernaryFigures, open_metrics


def test_figures_go_to_jsonl_and_a_second_opening_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        with open_metrics(tmp_path, "run", {}) as metrics:
            metrics.log({"loss": 1.5 * step, "bad": float("nan")}, step)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.5, "bad": None}, {"step": 2, "loss": 3.0, "bad": None}]


def test_t22_a_missing_key_is_loud_and_training_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with open_metrics(tmp_path, "run", {}):
        pass
    said = capsys.readouterr().err
    assert "WANDB_API_KEY is not set" in said and "Training continues" in said and said.count("#") > 100
    assert "ABORT" not in said.upper() and str(tmp_path / "metrics.jsonl") in said


def test_with_a_key_figures_go_to_wandb_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **start: calls.append(("init", start))  # type: ignore[attr-defined]
    fake.log = lambda figures, step: calls.append(("log", (figures, step)))  # type: ignore[attr-defined]
    fake.finish = lambda: calls.append(("finish", None))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
    with open_metrics(tmp_path, "run", {"seed": 1}, group="study", tags=("stage2",)) as metrics:
        metrics.log({"loss": 2.0}, 3)
    assert [name for name, _ in calls] == ["init", "log", "finish"]
    assert (calls[0][1]["group"], calls[0][1]["tags"]) == ("study", ["stage2"])
    assert calls[0][1]["name"] == "run" and calls[1][1] == ({"loss": 2.0}, 3)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(MissingDependencyError, match=r"pip install .wrinklefree\[wandb\]"),
        open_metrics(tmp_path, "run", {}),
    ):
        pass


def test_trackio_keeps_its_database_in_the_run_and_needs_no_network(tmp_path: Path) -> None:
    code = (
        "import os, socket; from pathlib import Path\n"
        "def refuse(*a, **k): raise OSError('no network in this test')\n"
        "socket.socket.connect = refuse\n"
        "from wrinklefree.train.metrics import open_metrics\n"
        "with open_metrics(Path('out'), 'run', {'seed': 1}, 'trackio') as metrics:\n"
        "    os.chdir('../elsewhere')\n"
        "    metrics.log({'loss': 1.0}, 1)\n"
    )
    (tmp_path / "here" / "out").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("TRACKIO_DIR", "WANDB_API_KEY")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60,
        cwd=tmp_path / "here",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list((tmp_path / "here" / "out" / "trackio").glob("*.db"))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_unknown_trackers_and_processes_that_do_not_log(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'trackio'"), open_metrics(tmp_path, "run", {}, "trackoi"):
        pass
    with open_metrics(tmp_path, "run", {}, enabled=False) as metrics:
        metrics.log({"loss": 1.0}, 1)
    assert list(tmp_path.iterdir()) == []


def test_zeros_and_flips_count_codes() -> None:
    model, figures = toy_model(1, ternary=True), TernaryFigures()
    first = figures.measure(model)
    layers = dict(bit_linears(model))
    total = sum(layer.weight.numel() for layer in layers.values())
    zeros = sum(int((layer.ternary()[0] == 0).sum()) for layer in layers.values())
    assert first == {"ternary/zeros": zeros / total}
    layer = next(iter(layers.values()))
    before = layer.ternary()[0].clone()
    with torch.no_grad():
        layer.weight.neg_()
    flips = int((layer.ternary()[0] != before).sum())
    second = figures.measure(model)
    assert second["ternary/flips"] == flips / total and flips > 100
    assert TernaryFigures().measure(toy_model(1)) == {}


def test_a_tracker_that_fails_is_switched_off_and_the_figures_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        name = "somewhere"
        calls = 0

        def log(self, figures: Any, step: int) -> None:
            Failing.calls += 1
            raise ConnectionError("the server is gone")

        def close(self) -> None:
            raise ConnectionError("still gone")

    with open_metrics(tmp_path, "run", {}) as metrics:
        metrics._sinks.insert(0, Failing())
        for step in (1, 2):
            metrics.log({"loss": 1.0}, step)
        metrics._sinks.append(Failing())
    said = capsys.readouterr().err
    assert "somewhere is OFF from step 1 on: ConnectionError: the server is gone. Training continues" in said
    assert "its last figures may be missing" in said and Failing.calls == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_tracker_that_cannot_start_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = types.ModuleType("wandb")

    def refuse(**start: Any) -> None:
        raise TimeoutError("no answer")

    fake.init = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
    with open_metrics(tmp_path, "run", {}, "wandb") as metrics:
        metrics.log({"loss": 1.0}, 1)
    assert "wandb is OFF for this run: TimeoutError: no answer. Training continues" in capsys.readouterr().err
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: its files were not checked")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_metrics(tmp_path, "run", {}, "tensorboard") as metrics:
        for step in (1, 2):
            metrics.log({"loss": 1.5 * step}, step)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.5), (2, 3.0)]


@pytest.mark.slow
def test_t22_wandb_with_a_server_that_is_not_there(tmp_path: Path) -> None:
    """The real package, a key, and nobody at the address: the run goes on with its own file."""
    pytest.importorskip("wandb", reason="wandb is not installed: its behaviour without a server was not checked")
    code = (
        "import sys; from pathlib import Path\n"
        "from wrinklefree.train.metrics import open_metrics\n"
        "with open_metrics(Path(sys.argv[1]), 'run', {'seed': 1}, 'wandb') as metrics:\n"
        "    metrics.log({'loss': 1.0}, 1)\n"
    )
    settings = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "5"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env={**os.environ, **settings},
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "wandb is OFF for this run" in done.stderr and "Training continues" in done.stderr
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
