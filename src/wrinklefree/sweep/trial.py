"""One trial of a study, as the table keeps it and everything else reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PLANNED, RUNNING, COMPLETE, FAILED, STOPPED = "planned", "running", "complete", "failed", "stopped"
STATES = (PLANNED, RUNNING, COMPLETE, FAILED, STOPPED)
"""PLANNED: waits for a worker. STOPPED: ended early because it promised too little; its last figures stand."""
ENDED = (COMPLETE, FAILED, STOPPED)


@dataclass(frozen=True)
class Trial:
    """``parameters``: name -> value; an inactive conditional parameter is absent, not a placeholder.

    ``origin``: who chose the values ("sobol", "bayesian", "random", "given"). ``figures``: name -> number, of all
    stages, by "STAGE.figure". ``curve``: (step, value) pairs of the objective while it ran. ``attempts``: how often a
    worker took it up; ``lost``: how often such a worker was not heard of again. Times are seconds since 1970, by the
    database's clock where it has one.
    """

    number: int
    parameters: Mapping[str, Any]
    state: str = PLANNED
    origin: str = "sobol"
    worker: str | None = None
    attempts: int = 0
    lost: int = 0
    started: float | None = None
    ended: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()
    error: str | None = None
    directory: str | None = None
