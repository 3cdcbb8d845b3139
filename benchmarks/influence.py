"""What moving the mixture is worth: a fixed mixture against influence and online mixing, on text that steers nothing.

    python benchmarks/influence.py [--steps 150] [--seeds 0 1 2] [--arms static datainf ...] [--json FILE]

A small ternary model is trained from nothing on bytes of four sources: docstrings of the standard library, its code
(without comments and docstrings), sums of numbers, and random letters. The probe is help topics. What is reported is
the loss in nats per byte on three sets of other documents, which the training text is guarded against: other help
topics (the probe's domain), other modules' docstrings (a source, not the probe), and comments of the code (neither).
Every arm sees the same number of sequences; "seconds" shows what steering took. "oracle" is a fixed mixture that never
draws the random letters, "prose" one with the mean shares that datainf came to in 150 steps. The same seed gives every
arm the same start and the same order within each source.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import random
import sysconfig
import time
import tokenize as python_tokens
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.data.document import Document
from wrinklefree.data.packing import PackedSequences
from wrinklefree.data.python_docs import HELD_OUT_TOPICS, docstrings, topics
from wrinklefree.data.split import guard, shared_document
from wrinklefree.data.stream import PackedStream
from wrinklefree.data.tokens import TextEncoder, tokenize
from wrinklefree.models.convert import convert_model
from wrinklefree.objectives import NextToken
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.quant.ternary import TernarySpec
from wrinklefree.train.influence import Influence
from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Schedule
from wrinklefree.train.recipe import InfluenceRecipe
from wrinklefree.train.sample_gradients import SequenceProbe
from wrinklefree.train.session import LoopConfig

EOS, LENGTH, BATCH = 256, 96, 8
SOURCES = ("docstrings", "code", "sums", "letters")
REPORTED = ("topics", "docstrings", "comments")
FIXED = {"oracle": (1.0, 1.0, 1.0, 0.0), "prose": (0.43, 0.25, 0.17, 0.15)}
ARMS = ("static", *FIXED, "datainf", "distillation", "online")
SOURCE_CHARACTERS, REPORTED_SEQUENCES = 300_000, 96


@dataclass(frozen=True)
class Texts:
    """Sequences of every source, of the probe, and of each reported set."""

    sources: tuple[PackedSequences, ...]
    probe: PackedSequences
    reported: Mapping[str, PackedSequences]


def main() -> None:
    """Run every arm with every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in given.seeds:
        for arm in given.arms:
            rows.append(measure(arm, seed, given.steps))
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows, given.arms))
    if given.json:
        given.json.write_text(json.dumps({"steps": given.steps, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def measure(arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one model and return its losses, the last mixture and the time."""
    data = texts()
    stream = PackedStream(data.sources, seed, FIXED.get(arm))
    student = toy(seed)
    companions = []
    if arm != "static" and arm not in FIXED:
        settings = InfluenceRecipe(
            kind=arm, every=20, warmup=20, lr=0.3, smoothing=0.5, samples=8, probe_sequences=24, landmarks=16,
            projection=1024,
        )  # fmt: skip
        companions = [Influence(settings, student, stream, data.probe, SOURCES, BATCH, seed)]
    started = time.monotonic()
    run(
        student, stream, torch.optim.AdamW(student.parameters(), 3e-3, (0.9, 0.95), weight_decay=0.0),
        ObjectiveManager({"next_token": Term(NextToken())}), config=LoopConfig(BATCH, ternary_every=0, log_every=1000),
        budget=Budget(tokens=steps * BATCH * LENGTH), schedule=Schedule("cosine", warmup_ratio=0.05, min_ratio=0.1),
        companions=companions,
    )  # fmt: skip
    seconds = time.monotonic() - started
    shares = np.bincount([stream.locate(k)[0] for k in range(steps * BATCH)], minlength=len(SOURCES)) / (steps * BATCH)
    return {
        "arm": arm, "seed": seed, "seconds": round(seconds, 1),
        **{f"loss/{name}": round(loss(student, data.reported[name]), 4) for name in REPORTED},
        **{f"drawn/{name}": round(float(share), 3) for name, share in zip(SOURCES, shares, strict=True)},
    }  # fmt: skip


def table(rows: list[dict[str, Any]], arms: list[str]) -> str:
    """Return mean and standard deviation over the seeds of each arm, and the differences to static seed by seed."""
    lines = ["| arm | " + " | ".join(REPORTED) + " | drawn: " + ", ".join(SOURCES) + " | seconds |"]
    lines.append("|" + " --- |" * (len(REPORTED) + 3))
    base = {row["seed"]: row for row in rows if row["arm"] == "static"}
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        cells = []
        for name in REPORTED:
            values = np.array([row[f"loss/{name}"] for row in mine])
            cell = f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}"
            if base and arm != "static":
                apart = np.array([row[f"loss/{name}"] - base[row["seed"]][f"loss/{name}"] for row in mine])
                cell += f" ({apart.mean():+.3f}, {int((apart < 0).sum())} of {len(apart)} lower)"
            cells.append(cell)
        drawn = ", ".join(f"{np.mean([row[f'drawn/{name}'] for row in mine]):.2f}" for name in SOURCES)
        cells += [drawn, f"{np.mean([row['seconds'] for row in mine]):.0f}"]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def loss(student: nn.Module, sequences: PackedSequences) -> float:
    """Return the mean loss of the first sequences of a reported set, in nats per byte."""
    probe = SequenceProbe(student)
    rows = [sequences.batch(np.arange(i, i + 8)) for i in range(0, min(REPORTED_SEQUENCES, len(sequences)), 8)]
    counts = [row.num_targets for row in rows]
    return float(np.average([float(probe.loss(row)) for row in rows], weights=counts))


def toy(seed: int) -> nn.Module:
    """Return a ternary Llama of two layers, 0.1 million parameters, with random weights."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=EOS + 1, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=LENGTH, tie_word_embeddings=True, initializer_range=0.05,
        )
    )  # fmt: skip
    convert_model(model, TernarySpec("row"), "ones")
    return model


@cache
def texts() -> Texts:
    """Return all data; it is the same in every arm and seed."""
    modules = docstrings()
    held = {d.id for d in modules if hashlib.sha256(d.id.encode()).digest()[0] < 20}
    comments, code = _comments_and_code({d.id for d in modules} - held)
    reported = {
        "topics": [d for d in topics() if d.id in HELD_OUT_TOPICS],
        "docstrings": [d for d in modules if d.id in held],
        "comments": _some(comments, 100_000),
    }
    everything = [document for documents in reported.values() for document in documents]
    probe = guard([d for d in topics() if d.id not in HELD_OUT_TOPICS], everything).train
    assert shared_document(probe, everything) is None
    rng = random.Random(0)
    sources = (
        guard(_some([d for d in modules if d.id not in held], SOURCE_CHARACTERS), everything).train,
        guard(_some(code, SOURCE_CHARACTERS), everything).train,
        [Document(f"sums:{i}", _sums(rng)) for i in range(400)],
        [Document(f"letters:{i}", "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=1500))) for i in range(400)],
    )
    encoder = TextEncoder(lambda text: list(text.encode()), EOS)
    packed = [PackedSequences(tokenize(documents, encoder), LENGTH, EOS) for documents in (*sources, probe)]
    return Texts(
        tuple(packed[:-1]), packed[-1],
        {name: PackedSequences(tokenize(d, encoder), LENGTH, EOS) for name, d in reported.items()},
    )  # fmt: skip


def _sums(rng: random.Random) -> str:
    pairs = [(rng.randrange(1000), rng.randrange(1000)) for _ in range(90)]
    return "\n".join(f"{a} + {b} = {a + b}" for a, b in pairs)


def _some(documents: list[Document], characters: int) -> list[Document]:
    """Return documents in the order of their hashes until there is enough text."""
    found, total = [], 0
    for document in sorted(documents, key=lambda d: hashlib.sha256(d.id.encode()).digest()):
        if total < characters and len(document.text) < characters / 8:
            found.append(document)
            total += len(document.text)
    return found


def _comments_and_code(modules: set[str]) -> tuple[list[Document], list[Document]]:
    """Return the comments, and the code without comments and docstrings, of standard library modules by id."""
    root = Path(sysconfig.get_path("stdlib"))
    comments, code = [], []
    for path in sorted(root.glob("*.py")):
        if f"stdlib:{path.stem}" not in modules:
            continue
        source = path.read_text(encoding="utf-8", errors="replace")
        tokens = python_tokens.generate_tokens(io.StringIO(source).readline)
        lines = [token.string.lstrip("#! ") for token in tokens if token.type == python_tokens.COMMENT]
        if len(text := "\n".join(line for line in lines if len(line) > 20)) > 500:
            comments.append(Document(f"comments:{path.stem}", text))
        tree = ast.parse(source)
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                body[0] = ast.Pass()
        code.append(Document(f"code:{path.stem}", ast.unparse(tree)))
    return comments, code


if __name__ == "__main__":
    main()
