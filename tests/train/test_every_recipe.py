"""Every training recipe on a toy, as far as a user goes: 20 steps, stopped and resumed, exported, run by the engine.

The recipes are found, not listed: a new one is walked without a line here. What a recipe needs beyond a text is in
`NEEDS`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from recipe_toys import arguments
from safetensors.torch import load_file
from task_toys import write_tasks

from wrinklefree.errors import InputError
from wrinklefree.export.export import export
from wrinklefree.train.compose import compose, list_recipes
from wrinklefree.train.position import Position
from wrinklefree.train.stage import train

TRAINING = [recipe.name for recipe in list_recipes() if recipe.group == "training"]
STEPS = 20
# More overrides for a recipe that needs more than a model and a text: (directory of the toy) -> overrides.
NEEDS: dict[str, Callable[[Path], list[str]]] = {
    "classification": lambda toy: _examples(toy, "classes"),
    "teacher_finetune": lambda toy: _examples(toy, "classes"),
    "bitdistill": lambda toy: [*_examples(toy, "classes"), f"model.teacher={_classifier(toy)}"],
    "teacher_finetune_summarization": lambda toy: _examples(toy, "completions"),
    "lrc_dlm_influence": lambda toy: _two_sources(toy),
    "summarization": lambda toy: [*_examples(toy, "completions"), f"model.teacher={toy / 'model'}"],
}
# What the engine does not run, and how `export` says so.
NOT_FOR_THE_ENGINE = {
    "classification": "is a classifier",
    "bitdistill": "is a classifier",
    "teacher_finetune": "is not ternary .* wf convert",
    "teacher_finetune_summarization": "is not ternary .* wf convert",
}
# Recipes that only convert: there is no step to interrupt.
CONVERT_ONLY = {"stage1_subln"}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("toy"))


def _examples(toy: Path, name: str) -> list[str]:
    return [f"data.sources.local.path={toy / name}.jsonl", "data.sources.local.kind=jsonl"]


def _two_sources(toy: Path) -> list[str]:
    """Something to mix, and influence within the few steps of the walk."""
    second = toy / "second"
    second.mkdir(exist_ok=True)
    for part in range(4):
        text = "\n\n".join(f"zebra {i} quartz {i * i} vex {part}" for i in range(part, 60, 4))
        (second / f"{part}.txt").write_text(text, encoding="utf-8")
    return [
        f"data.sources.second.path={second}", "data.sources.second.kind=text", "influence.warmup=4",
        "influence.every=4", "influence.samples=3", "influence.probe_sequences=3", "low_rank.sequences=2",
    ]  # fmt: skip


def _classifier(toy: Path) -> Path:
    """A teacher that has the classes, if nothing else."""
    out = toy / "classifier"
    recipe = compose([*arguments(toy, "teacher_finetune"), *_examples(toy, "classes"), "budget.max_steps=0"])
    train(recipe, out=out)
    return out


@pytest.mark.parametrize("name", TRAINING)
def test_it_trains_resumes_exactly_and_the_engine_agrees_with_torch(name: str, toy: Path, tmp_path: Path) -> None:
    steps = 0 if name in CONVERT_ONLY else STEPS
    more = NEEDS.get(name, lambda directory: [])(toy)
    recipe = compose([*arguments(toy, name), "batch.accumulation=1", f"budget.max_steps={steps}", *more])
    losses: list[float] = []

    def keep(position: Position, figures: Mapping[str, float]) -> None:
        losses.append(figures["loss"])

    def stop(position: Position, figures: Mapping[str, float]) -> None:
        if position.step == STEPS // 2:
            os.kill(os.getpid(), signal.SIGINT)

    assert train(recipe, out=tmp_path / "straight", on_step=keep).finished
    assert len(losses) == steps and all(torch.isfinite(torch.tensor(losses)))
    if steps:
        assert not train(recipe, out=tmp_path / "resumed", on_step=stop).finished
        assert train(recipe, out=tmp_path / "resumed").finished
        a, b = (load_file(tmp_path / each / "model.safetensors") for each in ("straight", "resumed"))
        assert a.keys() == b.keys() and all(torch.equal(a[tensor], b[tensor]) for tensor in a)
    if name in NOT_FOR_THE_ENGINE:
        with pytest.raises(InputError, match=NOT_FOR_THE_ENGINE[name]):
            export(tmp_path / "straight", tmp_path / "packed")
        return
    report = export(tmp_path / "straight", tmp_path / "packed", threads=1, greedy_tokens=16)
    assert report.agreement is not None and all(each.explained for each in report.agreement.differences)
    # A diffusion model is decoded by blocks too, each pass of the engine beside the torch reference.
    assert (report.blocks is not None) == recipe.diffuses
    assert report.blocks is None or report.blocks.passed
