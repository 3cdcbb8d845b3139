"""Influence while training: gradients against autograd, weights that reach the stream, resuming, wrong settings.

The toy: a source of learnable sequences, a source of noise, and a probe of other learnable sequences.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from influence_toys import LENGTH, NOISE, STEPS, toy_influence, toy_manager, toy_source
from recipe_toys import arguments, write_toy
from torch.func import functional_call
from train_toys import toy_model

from wrinklefree.data.batch import TokenBatch
from wrinklefree.data.influence import landmark_scores
from wrinklefree.data.mixing import Bounds
from wrinklefree.data.stream import PackedStream
from wrinklefree.errors import InputError
from wrinklefree.models.forward import HIDDEN, forward
from wrinklefree.quant.bitlinear import quant_strength
from wrinklefree.train.checkpoint import load_newest
from wrinklefree.train.compose import compose
from wrinklefree.train.influence import Influence
from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Schedule
from wrinklefree.train.recipe import InfluenceRecipe
from wrinklefree.train.sample_gradients import SUBSETS, SequenceProbe, _Applied
from wrinklefree.train.session import LoopConfig
from wrinklefree.train.stage import train as train_stage

SCRIPT = Path(__file__).parent / "mixture_script.py"
KINDS = ("datainf", "distillation", "online")


def one(kind: str = STEPS, index: int = 0, seed: int = 0) -> TokenBatch:
    return toy_source(kind, seed=seed).batch(np.array([index]))


def train(companion: Influence, steps: int, state: Path | None = None) -> Influence:
    optimizer = torch.optim.AdamW(companion.student.parameters(), lr=3e-3)
    run(
        companion.student, companion.stream, optimizer, toy_manager(),
        config=LoopConfig(micro_batch=2, accumulation=2, state_dir=state), budget=Budget(tokens=steps * 4 * LENGTH),
        schedule=Schedule("constant", warmup_ratio=0.0), companions=[companion],
    )  # fmt: skip
    return companion


@pytest.mark.parametrize("subset", SUBSETS)
def test_a_sequences_gradient_is_autograds(subset: str) -> None:
    model = toy_model(1, ternary=True)
    parameters = SUBSETS[subset](model)
    found = SequenceProbe(model, parameters, size=10**6).gradient(one())
    assert all(p.grad is None for p in model.parameters())
    batch = one()
    logits = forward(model, batch, frozenset({"logits"})).logits
    assert logits is not None
    torch.nn.functional.cross_entropy(logits[0, :-1], batch.labels[0, 1:]).backward()
    for gradient, parameter in zip(found, parameters.values(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad.flatten(), rtol=1e-4, atol=1e-6)
    assert SequenceProbe(model, parameters, size=100).gradient(one())[0].shape == (min(100, found[0].numel()),)


def test_an_embedding_is_the_derivative_along_a_direction() -> None:
    """Against the difference of two forwards; and the strength is back where it was."""
    model = toy_model(1, ternary=True, num_hidden_layers=3).double()
    quant_strength(model).value = 0.7
    probe = SequenceProbe(model, seed=5)
    found = probe.embedding(one(), blocks=2, tangents=1)
    assert quant_strength(model).value == 0.7
    wrapped = _Applied(model)
    names = [f"model.{n}" for n, _ in model.named_parameters() if n.startswith(("model.layers.0", "model.layers.1"))]
    with torch.autograd.forward_ad.dual_level():
        duals = probe._duals(wrapped, names, 0)
        along = {n: torch.autograd.forward_ad.unpack_dual(d).tangent.clone() for n, d in duals.items()}
    quant_strength(model).value = 0.0

    def states(step: float) -> torch.Tensor:
        moved = {n: wrapped.get_parameter(n) + step * along[n] for n in names}
        with torch.no_grad():
            return functional_call(wrapped, moved, lambda m: forward(m, one(), frozenset({HIDDEN})).hidden_states[1])

    # The norms compute in float32, so the difference is good to 1e-7 / 1e-3, and to the square of the step.
    difference = ((states(1e-3) - states(-1e-3)) / 2e-3).mean((0, 1)).float()
    assert (found - difference).norm() < 1e-3 * difference.norm()


@pytest.mark.parametrize("kind", ["datainf", "distillation"])
def test_influence_prefers_the_source_that_helps_the_probe(kind: str) -> None:
    companion = train(toy_influence(kind), 12)
    weights = dict(zip((STEPS, NOISE), companion.stream.mixture.weights, strict=True))
    assert weights[STEPS] > 0.65 and weights[NOISE] >= 0.1 - 1e-12


def test_online_mixing_prefers_the_source_that_is_not_learned() -> None:
    companion = train(toy_influence("online", min_weight=0.0, max_weight=1.0), 40)
    assert companion.stream.mixture.weights[1] > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_new_weights_hold_from_the_next_step_and_change_what_is_dealt(kind: str) -> None:
    companion = train(toy_influence(kind), 6)
    history = companion.stream.mixture.history
    assert [first for first, _ in history] == [0, 8, 16, 24]  # after steps 2, 4 and 6, of 4 sequences each
    assert len({weights for _, weights in history}) > 1
    last = history[-1][1]
    dealt = np.bincount([companion.stream.locate(k)[0] for k in range(24, 24 + 1024)], minlength=2) / 1024
    assert dealt.tolist() == pytest.approx(last, abs=1 / 1024)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_same_mixture_and_weights(kind: str, tmp_path: Path) -> None:
    straight = train(toy_influence(kind), 7)
    train(toy_influence(kind), 3, tmp_path)
    resumed = train(toy_influence(kind), 7, tmp_path)
    assert resumed.stream.mixture == straight.stream.mixture
    assert resumed.state_dict() == straight.state_dict()
    for a, b in zip(resumed.student.parameters(), straight.student.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_leaves_random_numbers_gradients_and_strength_alone() -> None:
    companion = toy_influence("distillation")
    quant_strength(companion.student).value = 0.5
    companion.student.train()
    before = torch.random.get_rng_state()
    companion._distillation(2)
    companion._datainf(2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(p.grad is None for p in companion.student.parameters())
    assert companion.student.training and quant_strength(companion.student).value == 0.5


def test_landmarks_beat_chance_on_a_toy() -> None:
    """60 landmarks of 120 sequences: the others' scores against their own gradients' products with the probe's.

    Chance for 60 sequences is a correlation of 0 with a standard deviation of 0.13.
    """
    sources = toy_source(STEPS, 60, seed=4), toy_source(NOISE, 60, seed=5)
    batches = [source.batch(np.array([i])) for source in sources for i in range(60)]
    model = toy_model(1)
    probe = SequenceProbe(model, SUBSETS["last_layer"](model), 4096, seed=3)
    gradients = torch.stack([torch.cat(probe.gradient(batch)) for batch in batches])
    target = torch.stack([torch.cat(probe.gradient(one(STEPS, i, seed=9))) for i in range(16)]).mean(0)
    embeddings = torch.stack([probe.embedding(batch) for batch in batches])
    landmarks, rest = torch.arange(0, 120, 2), torch.arange(1, 120, 2)
    exact = torch.nn.functional.normalize(gradients, dim=1) @ target
    scores = landmark_scores(embeddings, landmarks, gradients[landmarks], target)
    assert torch.corrcoef(torch.stack([scores[rest].float(), exact[rest]]))[0, 1] > 0.4
    assert scores[:60].mean() > scores[60:].mean()


def test_settings_that_cannot_work_are_input_errors() -> None:
    stream = PackedStream([toy_source(STEPS), toy_source(NOISE)])
    with pytest.raises(InputError, match="needs a probe"):
        Influence(InfluenceRecipe(kind="datainf"), toy_model(), stream, None, (STEPS, NOISE), 4)
    frozen = toy_model().requires_grad_(False)
    with pytest.raises(InputError, match=r"influence\.parameters=last_layer: this run trains none of them"):
        Influence(InfluenceRecipe(kind="datainf"), frozen, stream, toy_source(STEPS), (STEPS, NOISE), 4)
    with pytest.raises(InputError, match=r"influence\.every"):
        InfluenceRecipe(every=0)
    with pytest.raises(InputError, match=r"influence\.lr: found 1\.5"):
        InfluenceRecipe(lr=1.5)
    with pytest.raises(InputError, match="mixture bounds"):
        InfluenceRecipe(min_weight=0.7)
    with pytest.raises(InputError, match="2 shares"):
        Bounds(0.0, 0.4).check(2)


def test_mixed_pretrain_has_five_sources_and_composes() -> None:
    recipe = compose(["training=stage2_pretrain", "data=mixed_pretrain"])
    weights = {name: source.weight for name, source in recipe.data.sources.items()}
    assert weights == {"dclm": 0.25, "fineweb-edu": 0.35, "github-code": 0.1, "finemath": 0.15, "slimpajama": 0.15}
    assert recipe.data.sources["github-code"].field == "content"
    assert list(compose(["training=stage2_pretrain", "data=fineweb"]).data.sources) == ["fineweb-edu"]


def test_workers_and_cache_are_no_part_of_what_is_learned() -> None:
    base = compose(["training=stage2_pretrain"])
    other = compose(["training=stage2_pretrain", "data.workers=3", "data.prefetch=4", "data.cache_dir=x"])
    assert base.identity == other.identity
    assert base.identity != compose(["training=stage2_pretrain", "influence.kind=online"]).identity
    for wrong, message in (("influence.every=5", "kind is none"), ("data.prefetch=3", "builds no batch ahead")):
        with pytest.raises(InputError, match=message):
            compose(["training=stage2_pretrain", wrong])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_move_the_mixture_as_one_does(kind: str, tmp_path: Path) -> None:
    """Each process looks at half of the sequences; all end with the very same mixture, as near to one process's as
    float32 sums in another order are: six steps, relative 1e-3."""
    found = {}
    for processes, workers in ((1, 0), (2, 3)):
        directory = tmp_path / str(processes)
        directory.mkdir()
        command = [sys.executable, str(SCRIPT), str(processes), kind, str(workers), str(directory)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr
        found[processes] = [json.loads(path.read_text()) for path in sorted(directory.iterdir())]
    (one,), two = found[1], found[2]
    assert len(two) == 2 and two[0]["history"] == two[1]["history"]
    assert [first for first, _ in two[0]["history"]] == [first for first, _ in one["history"]] == [0, 8, 16, 24]
    np.testing.assert_allclose([w for _, w in two[0]["history"]], [w for _, w in one["history"]], rtol=1e-3)
    assert two[0]["loss"] == pytest.approx(one["loss"], rel=1e-3)


def two_sources(directory: Path) -> list[str]:
    """A toy model's recipe over two directories of text."""
    write_toy(directory)
    second = directory / "second"
    second.mkdir()
    for part in range(4):
        text = "\n\n".join(f"zebra {i} quartz {i * i} vex {part}" for i in range(part, 80, 4))
        (second / f"{part}.txt").write_text(text, encoding="utf-8")
    more = [f"data.sources.second.path={second}", "data.sources.second.kind=text", "batch.accumulation=1"]
    return [*arguments(directory, "stage2_pretrain"), *more]


def dealt(out: Path) -> list[list[Any]]:
    """The weights' history in the state that a run left."""
    state = load_newest(out / "state", print)
    assert state is not None
    return [list(entry) for entry in state["data"]["history"]]


def test_phases_of_a_composed_recipe_switch_the_data(tmp_path: Path) -> None:
    first, second = "{local: 1.0, second: 0.0}", "{local: 0.2, second: 0.8}"
    phases = f"[{{name: a, end: 0.5, data: {first}}}, {{name: b, end: 1.0, data: {second}}}]"
    overrides = two_sources(tmp_path)
    recipe = compose([*overrides, "budget.max_steps=8", f"curriculum.phases={phases}", "data.workers=1"])
    train_stage(recipe, out=tmp_path / "out")
    # Progress 0.5 still belongs to the first phase: five of eight steps, of two sequences each.
    assert dealt(tmp_path / "out") == [[0, [1.0, 0.0]], [10, [0.2, 0.8]]]
    with pytest.raises(InputError, match="'third' is no data source"):
        compose([*overrides, "curriculum.phases=[{name: a, end: 1.0, data: {third: 1.0}}]"])


def test_influence_of_a_composed_recipe_moves_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures: list[dict[str, float]] = []
    influence = ["influence.kind=datainf", "influence.warmup=2", "influence.every=2", "influence.samples=4"]
    recipe = compose([*two_sources(tmp_path), *influence, "budget.max_steps=6", "influence.max_weight=0.9"])
    train_stage(recipe, out=tmp_path / "out", on_step=lambda position, seen: figures.append(dict(seen)))
    history = dealt(tmp_path / "out")
    assert [first for first, _ in history] == [0, 4, 8, 12] and history[0][1] == [0.5, 0.5] != history[-1][1]
    assert [figures[-1]["mixture/local"], figures[-1]["mixture/second"]] == history[-1][1]
    assert {"influence/local", "influence/second"} <= figures[-1].keys() and "influence/local" not in figures[0]
    said = capsys.readouterr().err
    assert "Influence (datainf): from step 2, every 2 steps" in said and "Data second: " in said


def test_a_single_source_turns_influence_off_loudly_and_impossible_settings_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = two_sources(tmp_path)
    one = [argument for argument in both if "second" not in argument]
    train_stage(compose([*one, "influence.kind=datainf", "budget.max_steps=1"]), out=tmp_path / "one")
    assert "INFLUENCE IS OFF: the data has one source (local)" in capsys.readouterr().err
    phases = "curriculum.phases=[{name: a, end: 1.0, data: {local: 1.0, second: 1.0}}]"
    refused = (
        (["influence.max_weight=0.3"], "2 shares between"),
        ([phases, "curriculum.interpolation=linear"], "interpolation=step"),
        ([f"influence.probe.mine.path={tmp_path / 'second'}", "influence.probe.mine.kind=text"], "held-out document"),
    )
    for number, (wrong, message) in enumerate(refused):
        with pytest.raises(InputError, match=message):
            train_stage(compose([*both, "influence.kind=datainf", *wrong]), out=tmp_path / f"{number}")
