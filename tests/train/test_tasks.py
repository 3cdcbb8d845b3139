"""Tasks end to end on a toy: fine-tune a teacher, ternary students from labels and from the teacher, summaries."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from recipe_toys import SMALL
from safetensors.torch import load_file
from task_toys import write_tasks

from wrinklefree.errors import InputError
from wrinklefree.export.export import export
from wrinklefree.models.classification import class_names
from wrinklefree.models.io import load_checkpoint, load_source
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.train.compose import compose
from wrinklefree.train.position import Position
from wrinklefree.train.recipe import Recipe
from wrinklefree.train.stage import check_dtype, train

FAST = ["optimizer.lr=3e-3", "batch.micro_batch=8", "batch.accumulation=1", "data.sequence_length=24"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy, and its teacher fine-tuned on the classes."""
    directory = write_tasks(tmp_path_factory.mktemp("tasks"))
    train(recipe_for(directory, "teacher_finetune", "classes", 60), out=directory / "teacher")
    return directory


def recipe_for(toy: Path, name: str, data: str, steps: int, *more: str) -> Recipe:
    small = [each for each in SMALL if not each.startswith(("budget.max_steps", "batch", "data.sequence"))]
    source = [f"training={name}", f"model={toy / 'model'}", f"data={toy / f'{data}.jsonl'}"]
    return compose([*source, *small, *FAST, f"budget.max_steps={steps}", *more])


def held_out(out: Path) -> dict[str, float]:
    figures: dict[str, float] = json.loads((out / "held_out.json").read_text(encoding="utf-8"))
    return figures


def test_the_teacher_stays_in_full_precision_and_learns_the_task(toy: Path) -> None:
    model, _ = load_source(str(toy / "teacher"))
    assert not list(bit_linears(model)) and class_names(model) == ("high", "low")
    assert "wrinklefree" not in json.loads((toy / "teacher" / "config.json").read_text(encoding="utf-8"))
    assert held_out(toy / "teacher")["examples"] == 12 and held_out(toy / "teacher")["accuracy"] > 0.9


def test_a_ternary_student_learns_from_labels_and_from_the_teacher(toy: Path, tmp_path: Path) -> None:
    """Better than the majority class on held-out examples, by either recipe; every term of BitDistill has a share."""
    untrained = recipe_for(toy, "classification", "classes", 0)
    train(untrained, out=tmp_path / "zero")
    train(recipe_for(toy, "classification", "classes", 60), out=tmp_path / "labels")
    steps: list[Mapping[str, float]] = []
    taught = recipe_for(toy, "bitdistill", "classes", 60, f"model.teacher={toy / 'teacher'}")
    train(taught, out=tmp_path / "taught", on_step=lambda position, figures: steps.append(figures))
    for name in ("labels", "taught"):
        assert held_out(tmp_path / name)["accuracy"] > 0.8
        assert held_out(tmp_path / name)["loss"] < 0.7 * held_out(tmp_path / "zero")["loss"]
        model, _, info = load_checkpoint(tmp_path / name)
        assert len(list(bit_linears(model))) == 14 and info.subln == "identity"
        assert class_names(model) == ("high", "low") and info.strength == 1.0
    assert steps[-1]["class_kd/weight"] == 10.0 and steps[-1]["class_kd/top1_agreement"] > 0.7
    assert all(steps[-1][f"{name}/value"] > 0.0 for name in ("classification", "class_kd", "attention_relation"))
    assert all("next_token/value" not in figures for figures in steps)


def test_the_whole_way_conversion_pretraining_task(toy: Path, tmp_path: Path) -> None:
    """Stage 1 and 2 on text, then BitDistill: the classifier's backbone is the pretrained ternary one."""
    small = [each for each in SMALL if not each.startswith("budget.max_steps")]
    texts = [f"model={toy / 'model'}", f"data={toy / 'texts'}", *small]
    train(compose(["training=stage1_subln", *texts, "budget.max_steps=0"]), out=tmp_path / "one")
    second = ["training=stage2_pretrain", f"model={tmp_path / 'one'}", *texts[1:], "budget.max_steps=3"]
    train(compose(second), out=tmp_path / "two")
    third = recipe_for(toy, "bitdistill", "classes", 0, f"model.source={tmp_path / 'two'}",
                       f"model.teacher={toy / 'teacher'}")  # fmt: skip
    train(third, out=tmp_path / "three")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "three"))
    assert before.keys() - {"lm_head.weight"} == after.keys() - {"score.weight"}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() & after.keys())
    _, _, info = load_checkpoint(tmp_path / "three")
    assert info.stage == "bitdistill" and info.teacher == str(toy / "teacher")
    with pytest.raises(InputError, match=r"is a classifier \(LlamaForSequenceClassification\)"):
        export(tmp_path / "three", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_completions_are_learned_and_the_model_is_exported(toy: Path, tmp_path: Path) -> None:
    """Summaries without summaries: repeat a number of the prompt. Only the completion counts."""
    train(recipe_for(toy, "teacher_finetune_summarization", "completions", 60), out=tmp_path / "teacher")
    assert held_out(tmp_path / "teacher")["accuracy"] > 0.8
    steps: list[Mapping[str, float]] = []
    student = recipe_for(toy, "summarization", "completions", 80, f"model.teacher={tmp_path / 'teacher'}")
    train(student, out=tmp_path / "student", on_step=lambda position, figures: steps.append(figures))
    found = held_out(tmp_path / "student")
    # A digit and the end token: getting only the end token right is one half.
    assert found["accuracy"] > 0.7 and steps[-1]["next_token/value"] < 0.5 * steps[0]["next_token/value"]
    report = export(tmp_path / "student", tmp_path / "packed", threads=1, greedy_tokens=8)
    assert report.agreement is not None and all(each.explained for each in report.agreement.differences)


@pytest.mark.parametrize(
    ("name", "data"), [("bitdistill", "classes"), ("summarization", "completions"), ("teacher_finetune", "classes")]
)
def test_a_task_resumes_to_the_same_weights(name: str, data: str, toy: Path, tmp_path: Path) -> None:
    more = [f"model.teacher={toy / 'teacher'}"] if name == "bitdistill" else []
    recipe = recipe_for(toy, name, data, 6, *more)

    def stop(position: Position, figures: Mapping[str, float]) -> None:
        if position.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    assert train(recipe, out=tmp_path / "straight").finished
    assert not train(recipe, out=tmp_path / "stopped", on_step=stop).finished
    assert train(recipe, out=tmp_path / "stopped").finished
    a, b = (load_file(tmp_path / each / "model.safetensors") for each in ("straight", "stopped"))
    assert a.keys() == b.keys() and all(torch.equal(a[tensor], b[tensor]) for tensor in a)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_t9_every_entry_point_has_the_configured_dtype_and_50_steps_of_stage_1_9_stay_finite(
    dtype: str, toy: Path, tmp_path: Path
) -> None:
    small = [each for each in SMALL if not each.startswith(("budget.max_steps", "batch.acc"))]
    texts = ["training=stage1_9_layerwise", f"model={toy / 'model'}", f"data={toy / 'texts'}", *small]
    losses: list[float] = []
    recipe = compose([*texts, "batch.accumulation=1", "budget.max_steps=50", f"model.dtype={dtype}"])
    train(recipe, out=tmp_path / "out", on_step=lambda position, figures: losses.append(figures["loss"]))
    assert len(losses) == 50 and all(torch.isfinite(torch.tensor(losses)))
    wanted = getattr(torch, dtype)
    for model in (
        load_source(str(toy / "model"), wanted)[0],
        load_source(str(toy / "teacher"), wanted)[0],
        load_checkpoint(tmp_path / "out", wanted)[0],
    ):
        check_dtype(model, dtype)
        assert {p.dtype for name, p in model.named_parameters() if not name.endswith("_scale")} == {wanted}
    steps: list[float] = []
    task = recipe_for(toy, "bitdistill", "classes", 10, f"model.dtype={dtype}", f"model.teacher={toy / 'teacher'}")
    train(task, out=tmp_path / "task", on_step=lambda position, figures: steps.append(figures["loss"]))
    assert all(torch.isfinite(torch.tensor(steps)))
    check_dtype(load_checkpoint(tmp_path / "task", wanted)[0], dtype)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("classification", ["objectives.next_token.weight=1"], "a classifier predicts none"),
        ("stage2_pretrain", ["objectives.classification.weight=1"], "needs examples with a class"),
        ("classification", ["task.kind=clasification"], "did you mean 'classification'"),
        ("classification", ["task.lable=x"], "did you mean 'task.label'"),
        ("classification", ["task.prompt=x"], "because task.kind is classification"),
        ("summarization", ["task.label=x"], "because task.kind is completion"),
        ("teacher_finetune", ["model.subln=ones"], "because model.convert is false"),
        ("teacher_finetune", ["strength.kind=linear"], "because model.convert is false"),
        ("classification", ["data.cache_dir=x"], "are encoded anew each time"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(name: str, more: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compose([f"training={name}", *more])


def test_models_teachers_and_data_that_do_not_fit_are_refused(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no classifier; fine-tune it on the task first"):
        train(recipe_for(toy, "bitdistill", "classes", 2), out=tmp_path / "a")
    other = tmp_path / "other.jsonl"
    lines = [{"text": f"the number {i}", "label": "abc"[i % 3]} for i in range(12)]
    other.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (toy / "other.jsonl").write_text(other.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError, match=r"is a classifier for \['high', 'low'\], the examples have \['a', 'b', 'c'\]"):
        train(recipe_for(toy, "bitdistill", "other", 2, f"model.teacher={toy / 'teacher'}"), out=tmp_path / "b")
    with pytest.raises(InputError, match="a task needs records with fields"):
        train(compose(["training=classification", f"model={toy / 'model'}", f"data={toy / 'texts'}", *SMALL]),
              out=tmp_path / "c")  # fmt: skip
    train(recipe_for(toy, "classification", "classes", 0), out=tmp_path / "converted")
    again = recipe_for(toy, "teacher_finetune", "classes", 2, f"model.source={tmp_path / 'converted'}")
    with pytest.raises(InputError, match=r"model.convert: .* is converted already; give the original model"):
        train(again, out=tmp_path / "d")
