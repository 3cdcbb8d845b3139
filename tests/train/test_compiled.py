"""Compiled and recomputed layers learn what plain ones learn; what cannot be compiled is said, and the run goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipe_toys import arguments, write_toy
from torch import Tensor, nn
from train_toys import ToyStream, toy_model

from wrinklefree.errors import InputError
from wrinklefree.models.forward import forward, qkv
from wrinklefree.models.fused_layer import FusedForward
from wrinklefree.models.subln import decoder_layers
from wrinklefree.objectives import AttentionRelation, Layerwise, LogitsKD, NextToken
from wrinklefree.objectives.balance import Balance
from wrinklefree.objectives.manager import ObjectiveManager, Tally, Term
from wrinklefree.quant.bitlinear import held_codes, quant_strength
from wrinklefree.quant.passes import passes
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.train.compiled import CompileMode, checkpoint_layers, compile_layers

WEIGHTS = {"next_token": 1.0, "logits_kd": 1.0, "layerwise": 1.0, "relation": 1.0}


def gradients(
    student: nn.Module, relation: bool = True, hold: bool = True, strength: float = 0.5
) -> tuple[float, dict[str, Tensor]]:
    """Two micro-batches' loss and gradient, as the loop makes them."""
    terms = {"next_token": Term(NextToken()), "logits_kd": Term(LogitsKD()), "layerwise": Term(Layerwise())}
    if relation:
        terms["relation"] = Term(AttentionRelation("cosine"), balance=Balance(every=1))
    manager = ObjectiveManager(terms)
    teacher = LocalTeacher(lambda: toy_model(2), forward, student)
    quant_strength(student).value = strength
    student.train()
    torch.manual_seed(0)
    total = 0.0
    for _ in range(2):  # in the second step the balance is in force
        student.zero_grad()
        tally = Tally()
        batches = [ToyStream().batch(i, 2).numbered(i) for i in (0, 2)]
        counts = {name: sum(manager.counts(b, WEIGHTS)[name] for b in batches) for name in terms}
        with held_codes(student) if hold else torch.enable_grad():
            for batch in batches:
                taught = teacher.forward(batch, manager.teacher_wants(WEIGHTS))
                loss = manager.loss(student, batch, WEIGHTS, counts, taught, tally)
                loss.backward()
                total += float(loss.detach())
        manager.end_step(tally, counts, WEIGHTS, lambda x: x)
    return total, {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def assert_equal(a: tuple[float, dict[str, Tensor]], b: tuple[float, dict[str, Tensor]], relative: float) -> None:
    assert a[0] == pytest.approx(b[0], rel=max(relative, 1e-7)) and a[1].keys() == b[1].keys()
    for name, gradient in a[1].items():
        assert (gradient - b[1][name]).norm() <= relative * b[1][name].norm(), name


@pytest.mark.parametrize("hold", [True, False])
def test_recomputed_layers_give_the_same_gradients_also_with_frozen_embeddings(hold: bool) -> None:
    """The same operations on the same numbers: the same bits, dropout and held codes included."""

    def student() -> nn.Module:
        model = toy_model(1, ternary=True, subln="ones", attention_dropout=0.1)
        model.get_submodule("model.embed_tokens").requires_grad_(False)
        return model

    plain, recomputed = student(), student()
    checkpoint_layers(recomputed)
    calls = 0
    layer = decoder_layers(recomputed)[0].get_submodule("mlp")

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    layer.register_forward_pre_hook(count)  # recomputing ends inside of the layer, when it has what it needs
    expected = gradients(plain, hold=hold)
    assert_equal(gradients(recomputed, hold=hold), expected, 0.0)
    assert calls >= 8, "4 micro-batches, each forward done again in the backward"
    assert "model.embed_tokens.weight" not in expected[1]


def test_a_model_that_cannot_recompute_is_an_input_error() -> None:
    with pytest.raises(InputError, match="Linear has no such layers"):
        checkpoint_layers(nn.Linear(1, 1))


def test_t17_what_cannot_be_compiled_is_said_and_undone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = toy_model(1, ternary=True)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", lambda function, mode: fail)
    assert not compile_layers(student, "reduce-overhead", [], [], lambda: gradients(student))
    said = capsys.readouterr().err
    assert "device.compile=reduce-overhead is OFF: RuntimeError: no C++ compiler was found. Training continues" in said
    assert all("forward" not in vars(layer) for layer in decoder_layers(student))

    class Inside:
        name = "qk_clip"

    assert not compile_layers(student, "default", [], [Inside()], lambda: None)
    assert "qk_clip looks inside the layers. Training continues" in capsys.readouterr().err
    assert compile_layers(student, "default", [qkv(-1)], [], lambda: None)
    assert "layers [1] run uncompiled" in capsys.readouterr().err
    assert ["forward" in vars(layer) for layer in decoder_layers(student)] == [True, False]


@pytest.mark.filterwarnings("default")
def test_all_layers_share_what_was_compiled_once_or_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One graph serves every layer; with a key-value cache each needs its own, which ends at the compiler's limit."""
    student = toy_model(1, ternary=True, num_hidden_layers=4)
    graphs: list[object] = []
    real = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, mode: real(function, backend=backend))
    batch = ToyStream().batch(0, 2)
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():
        assert compile_layers(student, "default", [], [], lambda: forward(student, batch))
        assert len(graphs) == 1
        for layer in decoder_layers(student):
            del layer.forward
        torch.compiler.reset()
        with_cache = lambda: student(batch.input_ids, use_cache=True)  # noqa: E731
        assert not compile_layers(student, "default", [], [], with_cache)
    assert "device.compile=default is OFF: FailOnRecompileLimitHit" in capsys.readouterr().err


@pytest.mark.skipif(passes() is None, reason="no compiled passes: fused layers were not tried")
def test_fused_layers_are_in_force_and_say_where_they_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    student = toy_model(1, ternary=True, scales=True)
    assert compile_layers(student, "fused", [qkv(-1)], [], lambda: None)
    assert [isinstance(vars(layer).get("forward"), FusedForward) for layer in decoder_layers(student)] == [True, False]
    assert "layers [1] run uncompiled" in capsys.readouterr().err
    gradients(student, strength=1.0)
    assert capsys.readouterr().err.count("layers run as they are where there is no bfloat16 precision") == 1
    with torch.autocast("cpu", torch.bfloat16):
        gradients(student, strength=1.0)
        assert capsys.readouterr().err == ""
    assert not compile_layers(toy_model(1, ternary=True, subln="ones"), "fused", [], [], lambda: None)
    assert "2 of 2 layers run as they are: hooks inside" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler: compiled layers were not checked")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_t17_compiled_layers_give_the_same_loss_and_gradients(
    mode: CompileMode, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without quantisation within float32's rounding, of sums in another order.

    With it a difference in the last bit moves an input to the next of its 255 levels now and then, which changes the
    output by up to 1/127 of a channel's largest value: the direction of every gradient stays.
    """
    plain, compiled = (toy_model(1, ternary=True, subln="ones") for _ in range(2))
    attempt = lambda: gradients(compiled, relation=False, hold=False)  # noqa: E731
    assert compile_layers(compiled, mode, [], [], attempt), capsys.readouterr().err
    expected = gradients(plain, relation=False, strength=0.0)
    assert_equal(gradients(compiled, relation=False, hold=False, strength=0.0), expected, 1e-4)
    loss, expected_gradients = gradients(plain, relation=False)
    compiled_loss, compiled_gradients = gradients(compiled, relation=False, hold=False)
    assert compiled_loss == pytest.approx(loss, rel=2e-3)
    for name, gradient in compiled_gradients.items():
        cosine = nn.functional.cosine_similarity(gradient.flatten(), expected_gradients[name].flatten(), dim=0)
        assert cosine > 0.999, name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler: compiled training was not checked")
def test_a_compiled_run_with_recomputing_trains_or_says_why_not(tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "toy")
    more = ["device.compile=default", "device.gradient_checkpointing=true"]
    wf = "import sys; from wrinklefree.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", wf, "train", *arguments(toy, "quick_distill"), *more]
    for name, words in (("compiled", command), ("plain", [word for word in command if word not in more])):
        done = subprocess.run(
            [*words, f"--out={tmp_path / name}"], capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stderr
        if name == "compiled":
            print(done.stderr)
            off = "device.compile=default is OFF" in done.stderr
    figures = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("compiled", "plain")
    ]
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=2e-3)
    assert json.loads((tmp_path / "compiled" / "summary.json").read_text())["fallbacks"] == int(off)
