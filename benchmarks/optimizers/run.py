"""Every optimizer on one small ternary model, each at its own rate: loss by step, processor seconds and bytes of state.

    python benchmarks/optimizers/run.py [--steps 120] [--seeds 0 1 2] [--results DIR]

For each optimizer the rates of its row are tried with a seed of their own (99); the one with the lowest held-out loss
is run with every seed. A seed draws the model and the order of the sequences; all optimizers of a seed see the same.
One JSON file per run; what is there already is not run again. `report.py` makes the table and the picture.

The model: 2 Llama layers of 64 (0.1M parameters, bytes as tokens), ternary in groups of 64 with SubLN of ones, trained
from nothing on Python's documentation by next-token prediction, 8 sequences of 64 bytes in a step.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.artifact.files import json_bytes, write_bytes
from wrinklefree.artifact.provenance import provenance
from wrinklefree.data.batch import IGNORE_INDEX, TokenBatch
from wrinklefree.data.document import SourceConfig
from wrinklefree.data.sources import read_documents
from wrinklefree.models.convert import convert_model
from wrinklefree.models.forward import LOGITS, forward
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.objectives.next_token import NextToken
from wrinklefree.optim.build import OptimizerConfig, build_optimizer
from wrinklefree.optim.muon import state_tensors
from wrinklefree.quant.ternary import TernarySpec
from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Schedule
from wrinklefree.train.qk_clip import QkClip
from wrinklefree.train.session import LoopConfig

LENGTH, ROWS, HELD_OUT = 64, 8, 64
TUNING_SEED = 99
# Peak rates that are tried. Of optimizers with two, the matrices'; embeddings and norms have AdamW at REST_RATE.
RATES: dict[str, tuple[float, ...]] = {
    "adamw": (1e-3, 3e-3, 1e-2, 3e-2),
    "adamw_8bit": (1e-3, 3e-3, 1e-2, 3e-2),
    "muon": (5e-3, 2e-2, 6e-2, 2e-1),
    "muonclip": (5e-3, 2e-2, 6e-2, 2e-1),
    "apollo": (3e-3, 1e-2, 3e-2, 1e-1),
    "apollo_mini": (3e-3, 1e-2, 3e-2, 1e-1),
}
REST_RATE = 3e-3


class Bytes:
    """Sequences of bytes of one text, in an order that the seed draws; the last ``HELD_OUT`` places are held out."""

    def __init__(self, seed: int) -> None:
        rows = _rows()
        # The held-out rows are the same for every seed.
        fixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        self.held_out = rows[fixed[:HELD_OUT]]
        mine = torch.randperm(len(rows) - HELD_OUT, generator=torch.Generator().manual_seed(seed + 1))
        self._rows = rows[fixed[HELD_OUT:]][mine]

    def batch(self, first_sequence: int, size: int) -> TokenBatch:
        return batch_of(self._rows[[(first_sequence + i) % len(self._rows) for i in range(size)]])


@functools.cache
def _rows() -> Tensor:
    """Return int64 [N, LENGTH], the bytes of Python's documentation topics and docstrings."""
    text = "\n".join(document.text for document in read_documents(SourceConfig()))
    raw = torch.frombuffer(bytearray(text.encode("utf-8")), dtype=torch.uint8).long()
    return raw[: len(raw) // LENGTH * LENGTH].view(-1, LENGTH)


def batch_of(ids: Tensor) -> TokenBatch:
    """Return rows [B, T] of token ids as one document each."""
    labels = torch.cat([torch.full((len(ids), 1), IGNORE_INDEX), ids[:, 1:]], dim=1)
    positions = torch.arange(LENGTH).expand(len(ids), -1)
    return TokenBatch(ids, labels, positions, torch.zeros(ids.shape, dtype=torch.int32))


def student(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=LENGTH, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=None,
        )
    )  # fmt: skip
    convert_model(model, TernarySpec(), "ones")
    return model


@torch.no_grad()
def held_out_loss(model: nn.Module, ids: Tensor) -> float:
    """Return nats per byte."""
    logits = forward(model, batch_of(ids), frozenset({LOGITS})).logits
    assert logits is not None
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()))


def config_of(kind: str, rate: float) -> OptimizerConfig:
    if kind in ("muon", "muonclip"):
        return OptimizerConfig(kind, lr=REST_RATE, muon_lr=rate, muon_scaling="original")
    if kind in ("apollo", "apollo_mini"):
        return OptimizerConfig(kind, lr=REST_RATE, apollo_lr=rate)
    return OptimizerConfig(kind, lr=rate)


def train(kind: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Train once and return the figures. Seconds are those of this process on the processor, whatever else runs."""
    model, data, config = student(seed), Bytes(seed), config_of(kind, rate)
    optimizer = build_optimizer(model, config)
    clips = [QkClip(model, config.clip_threshold, config.clip_alpha, 1)] if kind == "muonclip" else []
    losses: list[float] = []
    seconds: list[float] = []
    in_step = 0.0
    begin = time.process_time()
    inner = optimizer.step

    def timed(*words: Any, **named: Any) -> Any:
        nonlocal in_step
        started = time.process_time()
        done = inner(*words, **named)
        in_step += time.process_time() - started
        return done

    optimizer.step = timed  # type: ignore[method-assign]

    def seen(position: Any, figures: Any) -> None:
        losses.append(figures["next_token/value"])
        seconds.append(time.process_time() - begin)

    ended = run(
        model, data, optimizer, ObjectiveManager({"next_token": Term(NextToken())}),
        config=LoopConfig(ROWS, 1, ternary_every=0), budget=Budget(steps * ROWS * LENGTH),
        schedule=Schedule("wsd", warmup_ratio=0.1, decay_ratio=0.3), companions=clips, on_step=seen,
    )  # fmt: skip
    if ended.stopped != "budget":
        raise SystemExit(1)  # what is finished stays; the same command goes on
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in state_tensors(optimizer)}
    kept = getattr(getattr(optimizer, "_parts", [None])[0], "_kept", {})
    return {
        "optimizer": kind, "rate": rate, "seed": seed, "steps": steps,
        "held_out": held_out_loss(model, data.held_out), "losses": losses, "seconds": seconds,
        "optimizer_seconds": in_step, "parameter_bytes": sum(p.nbytes for p in model.parameters()),
        "state_bytes": sum(unique.values()) + sum(drawn.nbytes for _, drawn in kept.values()),
        "provenance": provenance(),
    }  # fmt: skip


def result(kind: str, rate: float, seed: int, steps: int, directory: Path) -> dict[str, Any]:
    """Return a run's figures, from its file when it is there."""
    path = directory / f"{kind}-{rate:g}-{seed}.json"
    if not path.exists():
        write_bytes(path, json_bytes(train(kind, rate, seed, steps)))
        print(f"{path.name}: held out {json.loads(path.read_text())['held_out']:.4f}", flush=True)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for kind in given.only:
        tried = {rate: result(kind, rate, TUNING_SEED, given.steps, given.results)["held_out"] for rate in RATES[kind]}
        best = min(tried, key=lambda rate: tried[rate])
        for seed in given.seeds:
            result(kind, best, seed, given.steps, given.results)


if __name__ == "__main__":
    main()
