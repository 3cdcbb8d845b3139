"""Influence while training: gradients against autograd, weights that reach the stream, resuming, wrong settings.

The toy: a source of learnable sequences, a source of noise, and a probe of other learnable sequences.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from influence_toys import LENGTH, NOISE, STEPS, toy_influence, toy_manager, toy_source
from torch.func import functional_call
from train_toys import toy_model

from wrinklefree.data.batch import TokenBatch
from wrinklefree.data.influence import landmark_scores
from wrinklefree.data.mixing import Bounds
from wrinklefree.data.stream import PackedStream
from wrinklefree.errors import InputError
from wrinklefree.models.forward import HIDDEN, forward
from wrinklefree.quant.bitlinear import quant_strength
from wrinklefree.train.compose import compose
from wrinklefree.train.influence import Influence
from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Schedule
from wrinklefree.train.recipe import InfluenceRecipe
from wrinklefree.train.sample_gradients import SUBSETS, SequenceProbe, _Applied
from wrinklefree.train.session import LoopConfig

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
