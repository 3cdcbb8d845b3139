"""What a training step takes, and how fast the loss falls, over configurations of one ternary model.

    python benchmarks/training_step.py [--model CHECKPOINT] [--optimizers adamw muon ...] [--micro-batch 2 8]
        [--compute float int8] [--checkpointing] [--steps 20] [--lr 1e-3] [--json FILE]

Without --model a toy of two layers is trained, on sequences that can be learned. All configurations take turns, one
step each, in one process; seconds are medians, ratios are to the first configuration. ``state`` is the optimizer's.
``fall`` is the loss that was lost from the first step to the last; beside it the same for each second and GiB of
state, weights and gradients, the figure that some comparisons of optimizers call convergence. A loss on a toy says
little about a model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.data.batch import TokenBatch
from wrinklefree.eval.equivalence import load_model
from wrinklefree.models.convert import convert_model
from wrinklefree.objectives import NextToken
from wrinklefree.objectives.manager import ObjectiveManager, Tally, Term
from wrinklefree.optim.build import OPTIMIZERS, OptimizerConfig, build_optimizer
from wrinklefree.optim.muon import state_tensors
from wrinklefree.quant.products import COMPUTES, Products, set_products
from wrinklefree.quant.ternary import TernarySpec
from wrinklefree.train.compiled import checkpoint_layers
from wrinklefree.train.memory import keep_freed_memory

_VOCABULARY = 256


class Candidate:
    """One configuration: its model, its optimizer, and what its steps took."""

    def __init__(self, given: argparse.Namespace, kind: str, rows: int, compute: Any, again: bool) -> None:
        self.name = f"{kind} x{rows} {compute}{' checkpointing' if again else ''}"
        self.rows, self.length = rows, given.length
        self.model = load_model(given.model)[0] if given.model else _toy()
        set_products(self.model, Products(compute))
        if again:
            checkpoint_layers(self.model)
        self.model.train()
        self.optimizer = build_optimizer(self.model, OptimizerConfig(kind, lr=given.lr))
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(self, number: int) -> None:
        """Do one step, and note its time and its loss."""
        batch = _batch(number, self.rows, self.length)
        manager = ObjectiveManager({"next_token": Term(NextToken())})
        weights = manager.base_weights
        started = time.perf_counter()
        loss = manager.loss(self.model, batch, weights, manager.counts(batch, weights, False), None, Tally(), False)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(float(loss.detach()))
        self.seconds.append(time.perf_counter() - started)

    def figures(self) -> dict[str, Any]:
        """Return what was measured; the first step, which makes the state, is not among the seconds."""
        pace = statistics.median(self.seconds[1:])
        state = sum({t.data_ptr(): t.nbytes for t in state_tensors(self.optimizer)}.values())
        held = state + 2 * sum(p.nbytes for p in self.model.parameters())
        fall = self.losses[0] - self.losses[-1]
        return {
            "name": self.name, "seconds": pace, "tokens_per_second": self.rows * self.length / pace,
            "state_mib": state / 2**20, "first_loss": self.losses[0], "last_loss": self.losses[-1],
            "fall_per_second_and_gib": fall / sum(self.seconds) / (held / 2**30), "losses": self.losses,
        }  # fmt: skip


def _toy() -> nn.Module:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    ))  # fmt: skip
    convert_model(model, TernarySpec())
    return model


def _batch(number: int, rows: int, length: int) -> TokenBatch:
    """Sequences that rise by an even step: the next token follows from the two before."""
    generator = torch.Generator().manual_seed(number)
    starts, rises = (torch.randint(1, high, (rows, 1), generator=generator) for high in (_VOCABULARY, 4))
    ids = (starts + rises * torch.arange(length)) % _VOCABULARY
    labels = ids.clone()
    labels[:, 0] = -100
    return TokenBatch(ids, labels, torch.arange(length).repeat(rows, 1), torch.zeros_like(ids, dtype=torch.int32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a converted checkpoint; default: a toy")
    kinds = ["adamw", "muon", "apollo", "apollo_mini"]
    parser.add_argument("--optimizers", nargs="+", choices=sorted(OPTIMIZERS), default=kinds)
    parser.add_argument("--micro-batch", nargs="+", type=int, default=[4])
    parser.add_argument("--compute", nargs="+", choices=COMPUTES, default=["float"])
    parser.add_argument("--checkpointing", action="store_true", help="each configuration with and without")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    keep_freed_memory()
    ways = (False, True) if given.checkpointing else (False,)
    grid = itertools.product(given.optimizers, given.micro_batch, given.compute, ways)
    candidates = [Candidate(given, *each) for each in grid]
    for number in range(max(given.steps, 2)):
        for candidate in candidates:
            candidate.step(number)
    rows = [candidate.figures() for candidate in candidates]
    titles = f"{'s/step':>8} {'ratio':>6} {'tokens/s':>9} {'state MiB':>9} {'loss':>15} {'fall/s/GiB':>10}"
    print(f"{'configuration':34} {titles}")
    for row in rows:
        ratio, losses = row["seconds"] / rows[0]["seconds"], f"{row['first_loss']:.3f} -> {row['last_loss']:.3f}"
        print(
            f"{row['name']:34} {row['seconds']:8.4f} {ratio:6.2f} {row['tokens_per_second']:9,.0f} "
            f"{row['state_mib']:9.2f} {losses:>15} {row['fall_per_second_and_gib']:10.3g}"
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
