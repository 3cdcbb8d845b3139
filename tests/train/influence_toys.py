"""Toys of the influence tests: sources of even steps (which a toy can learn) and of random tokens."""

from __future__ import annotations

import numpy as np
import torch
from train_toys import VOCABULARY, toy_model

from wrinklefree.data.packing import PackedSequences
from wrinklefree.data.stream import PackedStream
from wrinklefree.data.tokens import TokenizedDocuments
from wrinklefree.objectives import NextToken
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.train.influence import Influence
from wrinklefree.train.recipe import InfluenceRecipe

LENGTH = 24
STEPS, NOISE = "steps", "noise"


def toy_source(kind: str, count: int = 40, seed: int = 0) -> PackedSequences:
    """``count`` sequences of one document each: tokens that rise by 1, 2 or 3, or tokens without any order."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, VOCABULARY, (count, LENGTH))
    if kind == STEPS:
        rows = (rows[:, :1] + np.arange(LENGTH) * rng.integers(1, 4, (count, 1))) % VOCABULARY
    starts = np.arange(0, (count + 1) * LENGTH, LENGTH)
    return PackedSequences(TokenizedDocuments(rows.astype(np.int32).ravel(), starts), LENGTH, 0)


def toy_influence(kind: str, ternary: bool = True, workers: int = 0, **changes: object) -> Influence:
    """A companion over (steps, noise), with a probe of other steps; it acts every second step from the second on."""
    settings = {"every": 2, "warmup": 2, "samples": 8, "lr": 0.5, "smoothing": 0.5, "probe_sequences": 8}
    settings |= {"min_weight": 0.1, "max_weight": 0.9, "landmarks": 6, "projection": 256} | changes
    stream = PackedStream([toy_source(STEPS), toy_source(NOISE, seed=1)], seed=3, workers=workers)
    recipe = InfluenceRecipe(kind=kind, **settings)  # type: ignore[arg-type]
    student = toy_model(1, ternary=ternary)
    return Influence(recipe, student, stream, toy_source(STEPS, 16, seed=9), (STEPS, NOISE), 4)


def toy_manager() -> ObjectiveManager:
    torch.manual_seed(0)
    return ObjectiveManager({"next_token": Term(NextToken())})
