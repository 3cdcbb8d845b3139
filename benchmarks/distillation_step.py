"""What a step of quantisation-aware distillation on a CPU takes, as it is and with fused layers and a fused head.

    python -m benchmarks.distillation_step [--student CHECKPOINT --teacher MODEL] [--micro-batch 8] [--length 256]
        [--accumulation 1] [--threads 2] [--rounds 5] [--json FILE]

One student in turn with both; the embedding and the head are frozen, forward KL at temperature 1 against a bfloat16
teacher, products of the student in bfloat16 (`device.precision=bf16-mixed`), AdamW. Without --student a random model of
SmolLM2-135M's shape with learned scales of groups of 64 is trained, which takes the same time. Parts are timed inside
of whole steps; figures are the least of all rounds, which others on the machine disturb least (medians are in FILE's
rounds). Freed memory is kept, as `wf train` keeps it, for both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from benchmarks.qat_overhead import at_threads, processor
from torch import nn

from wrinklefree.data.batch import TokenBatch
from wrinklefree.models.convert import convert_model
from wrinklefree.models.forward import ForwardOutput, forward
from wrinklefree.models.fused_layer import FusedForward
from wrinklefree.models.io import load_checkpoint, load_source
from wrinklefree.models.subln import decoder_layers
from wrinklefree.objectives import LogitsKD
from wrinklefree.objectives import head as head_module
from wrinklefree.objectives.manager import ObjectiveManager, Tally, Term
from wrinklefree.optim.build import OptimizerConfig, build_optimizer
from wrinklefree.quant.bitlinear import bit_linears, held_codes
from wrinklefree.quant.passes import passes
from wrinklefree.quant.ternary import TernarySpec
from wrinklefree.train.memory import keep_freed_memory

VOCABULARY = 49152


def random_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    ))  # fmt: skip


def models(given: argparse.Namespace) -> tuple[Any, Any]:
    """Return a ternary float32 student whose embedding is frozen, and a bfloat16 teacher."""
    if given.student:
        student, teacher = (
            load_checkpoint(given.student, torch.float32)[0],
            load_source(given.teacher, torch.bfloat16)[0],
        )
    else:
        student, teacher = random_model(), random_model().to(torch.bfloat16)
        convert_model(student, TernarySpec("group", 64), "none")
        for _, layer in bit_linears(student):
            layer.set_scale(layer.ternary()[1])
    student.get_submodule("model.embed_tokens").requires_grad_(False)
    return student.train(), teacher.eval()


@contextmanager
def fused(student: nn.Module) -> Iterator[None]:
    def stop(reason: str) -> None:
        raise RuntimeError(f"a layer was not fused: {reason}")

    for layer in decoder_layers(student):
        layer.forward = FusedForward(layer, stop)
    try:
        yield
    finally:
        for layer in decoder_layers(student):
            del layer.forward


@contextmanager
def plain() -> Iterator[None]:
    found = head_module.FusedTerms.of
    head_module.FusedTerms.of = staticmethod(lambda *_: None)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        head_module.FusedTerms.of = found  # type: ignore[method-assign]


class Step:
    """One optimizer step in parts; `seconds` collects what each took."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.student, self.teacher = models(given)
        self.manager = ObjectiveManager({"logits_kd": Term(LogitsKD(temperature=1.0))})
        self.optimizer = build_optimizer(self.student, OptimizerConfig("adamw", lr=1e-6))
        shape = given.micro_batch, given.length
        ids = torch.randint(0, VOCABULARY, (given.accumulation, *shape), generator=torch.Generator().manual_seed(0))
        places = torch.arange(given.length).repeat(given.micro_batch, 1)
        self.batches = [TokenBatch(each, each.clone(), places, torch.zeros_like(each).int()) for each in ids]
        self.seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def run(self, way: str) -> None:
        taken: dict[str, float] = defaultdict(float)
        weights, started = self.manager.base_weights, time.perf_counter()

        def lap(part: str) -> None:
            nonlocal last
            taken[part] += time.perf_counter() - last
            last = time.perf_counter()

        last = started
        counts = {name: 0 for name in self.manager.terms}
        for batch in self.batches:
            counts = {name: counts[name] + n for name, n in self.manager.counts(batch, weights, True).items()}
        with held_codes(self.student) if len(self.batches) > 1 else nullcontext():
            for batch in self.batches:
                with torch.no_grad():
                    taught = forward(self.teacher, batch)
                lap("teacher")
                self._learn(batch, taught, counts, lap)
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        lap("clipping and optimizer")
        taken["step"] = time.perf_counter() - started
        for part, seconds in taken.items():
            self.seconds[way][part].append(seconds)

    def _learn(self, batch: TokenBatch, taught: ForwardOutput, counts: Any, lap: Any) -> None:
        real = head_module.head_pass

        def timed(*arguments: Any) -> Any:
            lap("student, forward")
            result = real(*arguments)
            lap("head and divergence")
            return result

        import wrinklefree.objectives.manager as manager_module

        manager_module.head_pass = timed  # type: ignore[assignment]
        try:
            with torch.autocast("cpu", torch.bfloat16):
                loss = self.manager.loss(
                    self.student, batch, self.manager.base_weights, counts, taught, Tally(), monitor=True
                )
        finally:
            manager_module.head_pass = real
        loss.backward()
        lap("student, backward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--student", help="a converted checkpoint; default: a random model")
    parser.add_argument("--teacher", help="its original model")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    keep_freed_memory()
    kernels = passes()
    if kernels is None:
        raise SystemExit("the compiled passes are missing: install the package with its extension")
    with at_threads(given.threads):
        step = Step(given)
        for turn in range(given.rounds + 1):
            for way, block in (("plain", plain()), ("fused", fused(step.student))):
                with block:
                    step.run(way)
            if turn == 0:
                step.seconds.clear()  # allocators get ready, the optimizer makes its state
        threads = torch.get_num_threads()
    tokens = given.micro_batch * given.length * given.accumulation
    least = {way: {part: min(rounds) for part, rounds in kept.items()} for way, kept in step.seconds.items()}
    print(f"{processor()}, {threads} threads, {kernels.name} passes, torch {torch.__version__}, {tokens} tokens a step")
    print(f"{'':24}{'plain, s':>10}{'fused, s':>10}{'ratio':>8}")
    for part, seconds in least["plain"].items():
        other = least["fused"][part]
        print(f"{part:24}{seconds:>10.3f}{other:>10.3f}{seconds / other:>8.2f}")
    print(f"tokens a second: {tokens / least['plain']['step']:.0f} and {tokens / least['fused']['step']:.0f}")
    if given.json:
        machine = {"processor": processor(), "threads": threads, "passes": kernels.name, "torch": torch.__version__}
        given.json.write_text(json.dumps({"machine": machine, "tokens": tokens, "seconds": step.seconds}, indent=1))


if __name__ == "__main__":
    main()
