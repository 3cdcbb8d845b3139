"""The batch finder: the largest divisor that fits, measured with everything active, and nothing else changes."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from recipe_toys import arguments, write_toy
from torch import nn
from train_toys import ToyStream, toy_model

from wrinklefree.errors import InputError
from wrinklefree.models.forward import forward
from wrinklefree.objectives import AttentionRelation, Layerwise, LogitsKD, NextToken
from wrinklefree.objectives.balance import Balance
from wrinklefree.objectives.curriculum import Curriculum, Phase
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.quant.bitlinear import quant_strength
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.train import batch_finder
from wrinklefree.train.batch_finder import find_batch, search
from wrinklefree.train.compose import compose
from wrinklefree.train.position import Position
from wrinklefree.train.probe import Probe, largest_weights
from wrinklefree.train.stage import train


@pytest.mark.parametrize("sequences", [1, 2, 7, 24, 60, 64])
def test_the_search_finds_the_largest_divisor_that_fits(sequences: int) -> None:
    divisors = [n for n in range(1, sequences + 1) if sequences % n == 0]
    for limit in range(sequences + 2):
        tried: list[int] = []

        def fits(size: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(size)
            return size <= limit

        best = search(fits, sequences)
        assert best == max((n for n in divisors if n <= limit), default=None)
        assert set(tried) <= set(divisors) and len(tried) == len(set(tried))


def probe_of(student: nn.Module, length: int = 24) -> Probe:
    terms = {
        "next_token": Term(NextToken()),
        "logits_kd": Term(LogitsKD(), 0.0),
        "layerwise": Term(Layerwise(), 0.5),
        "relation": Term(AttentionRelation("cosine"), balance=Balance(every=3)),
    }
    manager = ObjectiveManager(terms)
    curriculum = Curriculum(manager.base_weights, [Phase("a", 0.5), Phase("b", 1.0, {"logits_kd": 2.0})])
    teacher = LocalTeacher(lambda: toy_model(2), forward, student)
    return Probe(student, ToyStream(length), manager, curriculum, teacher, torch.device("cpu"), blends=True)


def hooks(model: nn.Module) -> list[int]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(module, kind)) for module in model.modules() for kind in kinds]


def test_t8_a_probe_leaves_no_trace() -> None:
    """Parameters, gradients, generators, hooks, mode, strength and balance are as before, though all were active."""
    student = toy_model(1, ternary=True, subln="ones", attention_dropout=0.1)
    quant_strength(student).value = 0.25
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    probe = probe_of(student)
    before, state = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    seen, balance = hooks(student), copy.deepcopy(probe.manager.state_dict())
    largest = {"next_token": 1.0, "logits_kd": 2.0, "layerwise": 0.5, "relation": 1.0}
    assert largest_weights(probe.curriculum) == largest
    probe.run(2)
    assert probe.teacher is not None and probe.teacher.loaded
    probe.end()
    assert not probe.teacher.loaded
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and hooks(student) == seen and not student.training
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in student.parameters())
    assert quant_strength(student).value == 0.25 and probe.manager.state_dict() == balance
    assert probe.manager.balance.due("gradient") == ["relation"]


def test_memory_bounds_the_micro_batch_and_the_step_stays() -> None:
    probe = probe_of(toy_model(1, ternary=True), length=64)
    meter = batch_finder._CpuMeter()
    probe.run(1)  # loads the teacher
    small, large = (meter.peak_of(lambda size=size: probe.run(size)) for size in (1, 32))
    assert small and large and large > small
    moments = 2 * sum(p.numel() * 4 for p in probe.student.parameters())
    generous = find_batch(probe, 24, 2 * (large + moments) / 2**30)
    assert (generous.micro_batch, generous.accumulation) == (24, 1)
    tight = find_batch(probe, 96, ((small + large) / 2 + moments) / 2**30)
    assert 1 <= tight.micro_batch < 32 and tight.micro_batch * tight.accumulation == 96
    assert tight.peak <= tight.limit and "the tokens of an optimizer step stay as they are" in tight.line()
    with pytest.raises(InputError, match=r"one sequence takes .* GiB, the limit is 0.01 GiB; shorten"):
        find_batch(probe, 24, 0.01)


def test_a_size_is_not_tried_when_the_line_through_the_last_two_says_that_it_does_not_fit() -> None:
    assert batch_finder._expected({}, 8) == 0
    assert batch_finder._expected({1: 100}, 2) == 100
    assert batch_finder._expected({1: 100, 2: 110, 4: 130}, 8) == 170


def test_a_found_batch_is_kept_by_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = write_toy(tmp_path / "toy")
    recipe = compose(
        [*arguments(toy, "stage2_pretrain"), "batch.micro_batch=1", "batch.accumulation=8", "batch.find=true"]
    )
    plain = compose([*arguments(toy, "stage2_pretrain"), "batch.micro_batch=8", "batch.accumulation=1"])
    assert recipe.identity == plain.identity and recipe.step_tokens == plain.step_tokens

    def stop(position: Position, figures: Mapping[str, float]) -> None:
        if position.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    assert not train(recipe, out=tmp_path / "out", on_step=stop).finished
    assert "batch.find: micro_batch 8 x accumulation 1 takes" in capsys.readouterr().err
    state = (tmp_path / "out" / "state" / "step-00000002" / "state.json").read_text()
    assert '"batch"' in json.dumps(json.loads(state))

    def never(*arguments: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr("wrinklefree.train.stage.find_batch", never)
    done = train(recipe, out=tmp_path / "out")
    assert done.finished and done.result.position.sequences == 3 * 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch.memory_gib=4"], r"batch.memory_gib: nothing would read it, because batch.find is false"),
        (["batch.find=true", "batch.memory_gib=0"], "it must be above 0"),
        (["batch.find=true", "device.strategy=fsdp", "device.devices=2"], "leave the others waiting"),
        (["device.compile=default", "device.strategy=fsdp", "device.devices=2"], "not been tried on sharded layers"),
        (["device.compile=fast"], "unknown device.compile 'fast'"),
    ],
)
def test_wrong_settings_are_input_errors(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compose(["training=stage2_pretrain", *overrides])
