"""Recipes: each composes, dry-runs and trains three steps on a toy; wrong keys, names, types are input errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from recipe_toys import SMALL, arguments, write_toy
from safetensors.torch import load_file
from train_toys import toy_model

from wrinklefree.errors import InputError
from wrinklefree.models.io import load_checkpoint
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.train.compose import compose, list_recipes, recipes_directory, refuse_unused, to_yaml
from wrinklefree.train.parallel import build_fabric
from wrinklefree.train.plan import dry_run
from wrinklefree.train.position import Position
from wrinklefree.train.recipe import DeviceRecipe, Recipe
from wrinklefree.train.stage import train

TRAINING = [recipe.name for recipe in list_recipes() if recipe.group == "training"]
# Those that learn a task from labelled examples are trained in test_tasks.py and test_every_recipe.py.
ON_TEXT = [
    name
    for name in TRAINING
    if "\ntask:" not in (recipes_directory() / "training" / f"{name}.yaml").read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model with a tokenizer trained on a few words, and a text of them."""
    return write_toy(tmp_path_factory.mktemp("toy"))


def test_every_file_has_a_summary_and_the_required_stages_are_there() -> None:
    assert {"stage1_subln", "stage1_9_layerwise", "stage2_pretrain", "bitdistill_full"} <= set(TRAINING)
    assert all(len(recipe.summary) > 20 for recipe in list_recipes())
    assert {recipe.group for recipe in list_recipes()} == {"training", "model", "data", "optimizer"}


@pytest.mark.parametrize("name", TRAINING)
def test_it_composes_reads_every_key_it_gives_and_survives_its_own_yaml(name: str) -> None:
    recipe = compose([f"training={name}"])
    raw = yaml.safe_load((recipes_directory() / "training" / f"{name}.yaml").read_text(encoding="utf-8"))
    refuse_unused(recipe, [f"{a}.{b}" for a, inner in raw.items() if isinstance(inner, dict) for b in inner])
    values = yaml.safe_load(to_yaml(recipe))
    again = [f"{a}.{b}={json.dumps(v)}" for a in ("schedule", "batch", "budget") for b, v in values[a].items()]
    used = [key for key in again if not _unread(recipe, key.partition("=")[0])]
    assert compose([f"training={name}", *used]) == recipe


def _unread(recipe: Recipe, key: str) -> bool:
    try:
        refuse_unused(recipe, [key])
    except InputError:
        return True
    return False


@pytest.mark.parametrize("name", ON_TEXT)
def test_it_trains_three_steps_on_a_toy_and_the_checkpoint_loads(name: str, toy: Path, tmp_path: Path) -> None:
    steps: list[Mapping[str, float]] = []
    recipe = compose([*arguments(toy, name), *(["budget.max_steps=0"] if name == "stage1_subln" else [])])
    assert dry_run(recipe).parameters == sum(p.numel() for p in toy_model(1, vocab_size=300).parameters())
    result = train(recipe, out=tmp_path / "out", on_step=lambda position, figures: steps.append(figures))
    expected = 0 if name == "stage1_subln" else 3
    assert result.finished and result.result.position.step == len(steps) == expected
    model, _, info = load_checkpoint(tmp_path / "out")
    assert info.stage == recipe.stage and info.tokens_seen == expected * 2 * 2 * 32
    assert (info.strength, info.recipe_hash, info.subln) == (1.0, recipe.identity, "identity")
    assert len(list(bit_linears(model))) == 14
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all("next_token/ce" in figures for figures in steps)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, expected + 1))
    saved = (tmp_path / "out" / "recipe.yaml").read_text(encoding="utf-8").splitlines()
    assert saved[0] == f"# identity {recipe.identity}" and yaml.safe_load("\n".join(saved))["stage"] == recipe.stage


def test_a_stage_takes_the_checkpoint_of_the_one_before_and_its_teacher(toy: Path, tmp_path: Path) -> None:
    first = compose([*arguments(toy, "stage1_subln"), "budget.max_steps=0"])
    train(first, out=tmp_path / "one")
    second = compose(["training=stage1_9_layerwise", f"model={tmp_path / 'one'}", f"data={toy / 'texts'}", *SMALL])
    train(second, out=tmp_path / "two")
    _, _, info = load_checkpoint(tmp_path / "two")
    assert info.teacher == str(toy / "model") and info.stage == "stage1_9"
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(InputError, match=r"nothing would read it, because .* is converted already"):
        train(
            compose([f"training={second.stage}_layerwise", f"model={tmp_path / 'one'}", *SMALL, "model.subln=none"]),
            out=tmp_path / "three",
        )


def test_a_teacher_with_another_tokenizer_is_refused(toy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(toy / "model", other)
    raw = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = raw["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    recipe = compose([*arguments(toy, "quick_distill"), f"model.teacher={other}"])
    with pytest.raises(InputError, match="its tokenizer is not the student's"):
        train(recipe, out=tmp_path / "out")


def test_interrupted_training_resumes_to_the_same_weights(toy: Path, tmp_path: Path) -> None:
    recipe = compose([*arguments(toy, "bitdistill_full"), "budget.max_steps=4"])

    def stop(position: Position, figures: Mapping[str, float]) -> None:
        if position.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    straight = train(recipe, out=tmp_path / "straight")
    stopped = train(recipe, out=tmp_path / "stopped", on_step=stop)
    assert straight.finished and not stopped.finished
    assert not (tmp_path / "stopped" / "config.json").exists()
    assert train(recipe, out=tmp_path / "stopped").finished
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "stopped"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_has_the_configured_dtype_and_stays_finite(dtype: str, toy: Path, tmp_path: Path) -> None:
    recipe = compose([*arguments(toy, "stage1_9_layerwise"), f"model.dtype={dtype}", "budget.max_steps=12"])
    seen: list[float] = []
    train(recipe, out=tmp_path / "out", on_step=lambda position, figures: seen.append(figures["loss"]))
    assert all(x == x and abs(x) < 100 for x in seen) and len(seen) == 12
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    # The epsilon of SubLN is a setting, kept in float32 as scales are.
    assert {t.dtype for name, t in tensors.items() if not name.endswith(".eps")} == {getattr(torch, dtype)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training=stage2_pretran"], "unknown training recipe 'stage2_pretran'; did you mean 'stage2_pretrain'"),
        ([], "training: no recipe given"),
        (["model=nothere"], "unknown model recipe 'nothere'"),
        (["optimizer=adam"], "unknown optimizer recipe 'adam'; did you mean 'adamw'"),
        (["optimizer.kind=adam"], "unknown optimizer 'adam'; did you mean 'adamw'"),
        (["optimizr.lr=1"], "did you mean 'optimizer.lr'"),
        (["optimizer.lrr=1"], "did you mean 'optimizer.lr'"),
        (["schedule.kind=cosin"], "unknown schedule.kind 'cosin'; did you mean 'cosine'"),
        (["objectives.next_tokn.weight=1"], "did you mean 'objectives.next_token.weight'"),
        (["objectives.next_token.wight=1"], "did you mean 'objectives.next_token.weight'"),
        (["objectives.layerwise.metric=msee"], "did you mean 'mse'"),
        (["batch.micro_batch=a"], "batch.micro_batch: found 'a' .str., needed is int"),
        (["batch.micro_batch=0"], "batch.micro_batch: found 0, it must be at least 1"),
        (["batch.micro_batch=1.5"], "needed is int"),
        (["model.dtype=float16"], "unknown model.dtype 'float16'"),
        (["budget.total_tokens=null"], "all null, so training would never end"),
        (["budget.total_tokens=5"], "less than one step of 262144 tokens"),
        (["schedule.kind=cosine", "schedule.decay_ratio=0.3"], "schedule.decay_ratio: nothing would read it"),
        (["optimizer=adamw", "optimizer.muon_steps=3"], "only optimizer.kind=muon or muonclip reads it"),
        (["optimizer=adamw", "optimizer.apollo_scale=3"], "only optimizer.kind=apollo or apollo_mini reads it"),
        (["optimizer=muon", "optimizer.clip_threshold=3"], "only optimizer.kind=muonclip reads it"),
        (["optimizer=apollo_mini", "optimizer.apollo_rank=3"], "only optimizer.kind=apollo reads it"),
        (["model.teacher=a/b"], "no objective needs a teacher"),
        (["curriculum.phases=[{name: a, end: 0.5}]"], "the last phase ends at 0.5"),
        (
            ["curriculum.phases=[{name: a, end: 0.5, objectives: {next_token: 0.0}}, {name: b, end: 1.0}]"],
            "phase 'a': every objective has weight 0 there",
        ),
        (["diffusion.block_size=16"], "diffusion.block_size: nothing would read it, because no objective works on"),
        (["training=tcs", "diffusion.variant=fast_dlm"], "did you mean 'fast_dllm'"),
        (["curriculum.phases=[{name: a, ende: 1.0}]"], "did you mean 'end'"),
        (["curriculum.phases=[{name: a, end: 1.0, data: {web: 1.0}}]"], "'web' is no data source"),
        (["log.tracker=trackioo"], "log.tracker: found 'trackioo'"),
        (["data.sources=[1"], "recipe: "),
        (["nonsense"], "an override is key=value"),
    ],
)
def test_wrong_overrides_are_input_errors_that_help(overrides: list[str], message: str) -> None:
    stage = [] if not overrides or overrides[0].startswith("training") else ["training=stage2_pretrain"]
    with pytest.raises(InputError, match=message) as caught:
        compose([*stage, *overrides])
    assert "\n" not in str(caught.value)


def test_t5_max_steps_null_follows_from_total_tokens_and_both_null_is_an_error(toy: Path, tmp_path: Path) -> None:
    """int(tokens / (sequences x length x accumulation x processes)); such a recipe trains; both null is told."""
    sizes = ["data.sequence_length=32", "batch.micro_batch=2", "batch.accumulation=3"]
    recipe = compose([*arguments(toy, "stage2_pretrain"), *sizes, "budget.max_steps=null", "budget.total_tokens=1000"])
    assert recipe.steps == 1000 // (2 * 32 * 3) == 5
    two = compose([*arguments(toy, "stage2_pretrain"), *sizes, "budget.max_steps=null", "budget.total_tokens=1000",
                   "device.devices=2"])  # fmt: skip
    assert two.steps == 1000 // (2 * 32 * 3 * 2) == 2
    assert train(recipe, out=tmp_path / "out").result.position.step == 5
    with pytest.raises(InputError, match=r"are all null, so training would never end; set one"):
        compose([*arguments(toy, "stage2_pretrain"), "budget.max_steps=null"])


def test_tokens_and_steps_follow_from_each_other_including_processes() -> None:
    by_tokens = compose(["training=stage2_pretrain"])
    assert by_tokens.step_tokens == 32 * 16 * 512
    assert by_tokens.steps == 10_000_000_000 // (32 * 16 * 512) == dry_run(by_tokens).steps
    four = compose(["training=stage2_pretrain", "device.devices=4"])
    assert four.steps == 10_000_000_000 // (4 * 32 * 16 * 512)
    by_steps = compose(["training=stage2_pretrain", "budget.max_steps=100"])
    assert by_steps.steps == 100 and by_steps.run_budget.tokens == 100 * 32 * 16 * 512


def test_machines_count_like_processes() -> None:
    one = compose(["training=stage2_pretrain"])
    many = compose(["training=stage2_pretrain", "batch.accumulation=1", "device.devices=8", "device.nodes=2"])
    assert many.device.processes == 16
    assert (many.step_tokens, many.steps, many.identity) == (one.step_tokens, one.steps, one.identity)


def test_processes_of_another_number_than_the_recipes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both would train something else, or wait for a machine that never comes."""
    for name in ("TORCHELASTIC_RUN_ID", "NODE_RANK", "GROUP_RANK", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="start the same command on every machine, with torchrun"):
        build_fabric(DeviceRecipe("cpu", nodes=2))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"torchrun started 2 processes, but device.devices=1"):
        build_fabric(DeviceRecipe("cpu"))


def test_the_identity_is_what_is_learned_not_where_or_how_long() -> None:
    base = compose(["training=stage2_pretrain"])
    same = compose(["training=stage2_pretrain", "log.log_every=7", "out=elsewhere", "budget.max_steps=5"])
    other = compose(["training=stage2_pretrain", "optimizer.lr=1e-3"])
    assert base.identity == same.identity != other.identity


def test_an_output_directory_that_is_not_this_runs_is_refused(toy: Path, tmp_path: Path) -> None:
    recipe = compose([*arguments(toy, "stage1_subln"), "budget.max_steps=0"])
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="exists already and is no training run"):
        train(recipe, out=tmp_path)
    train(recipe, out=tmp_path / "run")
    other = compose([*arguments(toy, "stage1_subln"), "budget.max_steps=0", "seed=1"])
    with pytest.raises(InputError, match="holds a run of another recipe"):
        train(other, out=tmp_path / "run")
    assert (tmp_path / "mine.txt").read_text() == "keep me"
