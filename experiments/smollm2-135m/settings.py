"""What differs between machines: sizes, rates and budgets of every stage. Everything else is in the stages.

``cpu`` is what was run. ``gpu`` follows from measurements on CPUs and from plans, and has not been tried. ``smoke`` is
minutes of everything, to see it run; its figures mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from held_text import TRAINED, UNSEEN

EMBEDDING = "q6"  # of the packed files; figures.md has why


@dataclass(frozen=True)
class Sampled:
    """Text that the teacher writes: one ``wf corpus``, resumable, below 60 MB.

    ``asks``: questions, templates or documents. ``tokens``: sampled ones, at least; ``length`` of one text at most.
    ``together``: texts of a group, ``rows`` of them in the model at once (None: all).
    """

    name: str
    asks: str
    tokens: int
    temperature: float
    seed: int
    top_p: float = 0.95
    length: int = 256
    together: int = 256
    rows: int | None = None


@dataclass(frozen=True)
class Calibration:
    """``wf convert`` on ``tokens`` of a mixture, ``characters`` of each kind; ``gram``: sequences to round by."""

    tokens: int
    characters: Mapping[str, int]
    epochs: float = 1.0
    batch: int = 8
    rate: float = 1e-3
    gram: int = 128
    seed: int = 1


@dataclass(frozen=True)
class Training:
    """``wf train``: ``tokens`` in all, steps of ``step`` sequences of ``sequence`` tokens, ``micro`` in a forward.

    ``kinds``: the sequences' shares. ``save_every``: steps between states. Seeds differ from stage to stage, because a
    stage reads its data from the beginning.
    """

    tokens: int
    rate: float
    seed: int
    kinds: Mapping[str, float]
    step: int = 8
    micro: int = 8
    sequence: int = 256
    save_every: int = 100


_MIXED = ("device.precision=bf16-mixed", "teacher.dtype=bfloat16")
SHARES = MappingProxyType({"chat": 0.42, "continuation": 0.08, "docs": 0.25, "reviews": 0.15, "addresses": 0.1})


@dataclass(frozen=True)
class Scale:
    """One machine's settings.

    ``held``: documents of each kind. ``questions``: sampled tokens, before the filter; ``templates`` and ``openings``:
    prompts from templates and from documents. ``layerwise`` and ``again`` None: left out. ``options``: what all
    trainings are given. ``quick``: few figures. ``characters``: to train on, of each kind that people wrote.
    """

    accelerator: str
    held: Mapping[str, int]
    questions: Sampled
    templates: int
    openings: Mapping[str, int]
    sampled: tuple[Sampled, ...]
    calibration: Calibration
    layerwise: Training | None
    distilled: Training
    again: Training | None
    blocks: Training
    block: int = 4
    min_ratio: float = 0.7
    quick: bool = False
    seed: int = 5
    options: tuple[str, ...] = _MIXED
    characters: int = 10**12


_HELD = {"chat": 80, "continuation": 60, "docs": 40, "reviews": 60, "addresses": 24, "novel": 40, "code": 40}
_GPU = (*_MIXED, "device.compile=default", "data.workers=2")

SCALES = {
    "smoke": Scale(
        accelerator="cpu",
        held=dict.fromkeys((*TRAINED, *UNSEEN), 2),
        characters=60_000,
        questions=Sampled("questions", "chat", 600, 1.0, 201, 0.98, 40, 16),
        templates=40,
        openings={"docs": 8, "reviews": 8, "addresses": 4},
        sampled=(
            Sampled("chat-1", "templates", 200, 1.0, 101, length=24, together=8),
            Sampled("chat-2", "questions", 200, 0.7, 102, length=24, together=8, rows=4),
            Sampled("continuation-1", "documents", 200, 1.0, 104, 1.0, 24, 12),
        ),
        calibration=Calibration(512, dict.fromkeys(TRAINED, 2000), gram=2, batch=1),
        layerwise=None,
        distilled=Training(512, 5e-4, 11, SHARES, 2, 2, 64, 2),
        again=Training(256, 5e-4, 13, SHARES, 2, 2, 64, 2),
        blocks=Training(384, 3e-4, 12, SHARES, 2, 2, 64, 2),
        quick=True,
    ),
    # Two cores with AMX.
    "cpu": Scale(
        accelerator="cpu",
        held=_HELD,
        questions=Sampled("questions", "chat", 110_000, 1.0, 201, 0.98, 72, 1024, 256),
        templates=6000,
        openings={"docs": 900, "reviews": 900, "addresses": 300},
        sampled=(
            Sampled("chat-1", "templates", 150_000, 1.0, 101),
            Sampled("chat-2", "templates", 200_000, 0.7, 102),
            Sampled("chat-3", "questions", 100_000, 1.0, 103),
            Sampled("continuation-1", "documents", 60_000, 1.0, 104, 1.0, 192),
        ),
        calibration=Calibration(
            524_288,
            {"chat": 800_000, "docs": 560_000, "reviews": 400_000, "addresses": 430_000, "continuation": 420_000},
        ),
        layerwise=None,
        distilled=Training(2_457_600, 1e-3, 11, SHARES),
        again=None,
        blocks=Training(131_072, 1e-3, 12, SHARES),
        options=(*_MIXED, "device.compile=fused"),
    ),
    # One GPU that is lent for half an hour at a time. Steps of 65,536 tokens: 128 sequences of 512. Every training
    # token is from one reading of about 60M tokens of text, so it is read five times in 300M.
    "gpu": Scale(
        accelerator="cuda",
        held={kind: 4 * count for kind, count in _HELD.items()},
        questions=Sampled("questions", "chat", 3_000_000, 1.0, 201, 0.98, 72, 8192, 1024),
        templates=6000,
        openings={"docs": 60_000, "reviews": 60_000, "addresses": 5000},
        sampled=tuple(
            Sampled(f"chat-{i}", ("templates", "questions")[i % 2], 4_000_000, (0.7, 1.0)[i // 2 % 2], 100 + i,
                    length=512, together=4096, rows=1024)
            for i in range(8)
        ) + tuple(
            Sampled(f"continuation-{i}", "documents", 4_000_000, 1.0, 150 + i, 1.0, 448, 4096, 1024) for i in range(2)
        ),
        calibration=Calibration(2_097_152, {"chat": 4_000_000, "docs": 2_000_000, "reviews": 2_000_000,
                                            "addresses": 1_500_000, "continuation": 2_000_000}, gram=512),
        layerwise=None,
        distilled=Training(314_572_800, 1e-3, 11, SHARES, 128, 32, 512, 200),
        again=None,
        blocks=Training(104_857_600, 5e-4, 12, SHARES, 128, 16, 512, 200),
        options=_GPU,
    ),
}  # fmt: skip
