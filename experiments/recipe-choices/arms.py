"""What a table is made of: arms, and the stages that each of them runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """``overrides`` of ``wf train``; ``scored``: whether its checkpoint's held-out loss is measured.

    ``verb`` bench: a measurement of the engine instead, with these words; convert: a start for the stage behind it,
    the same for every seed. ``taught``: divergence from the teacher and agreement are measured beside the loss.
    """

    name: str
    overrides: tuple[str, ...]
    scored: bool = True
    verb: str = "train"
    taught: bool = False


@dataclass(frozen=True)
class Arm:
    """``facts``: what the report sorts and labels by."""

    name: str
    stages: tuple[Stage, ...]
    facts: dict[str, float | str | bool | None]
