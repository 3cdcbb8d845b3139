"""Where a run is and how far it may go: the counters of a run, its budget, and the shape of its learning rate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wrinklefree.errors import InputError, unknown_name
from wrinklefree.optim.schedules import SCHEDULES, lr_factor, weight_decay_factor

# Stands for the whole budget when only time bounds a run, so that schedules written in tokens have a length.
_NORM_MEMORY = 0.99  # of the moving average of the gradient norm that diagnoses quote
_NOMINAL_TOKENS = 1_000_000_000


@dataclass(frozen=True)
class Budget:
    """Where a run ends: after ``tokens`` (over all processes), after ``seconds`` of training, or the earlier of both.

    A run that time bounds is not repeatable bit for bit, because its schedules follow the clock.

    Raises: InputError when both are None, or one is negative.
    """

    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.tokens is None and self.seconds is None:
            raise InputError(
                "budget: total_tokens, max_steps and max_seconds are all null, so training would never end; set one"
            )
        if (self.tokens or 0) < 0 or (self.seconds or 0.0) < 0.0:
            raise InputError("budget: must not be negative")


@dataclass
class Position:
    """The counters of a run; all of them are in the checkpoint."""

    step: int = 0
    tokens: int = 0
    sequences: int = 0
    seconds: float = 0.0
    nonfinite: int = 0
    nonfinite_in_a_row: int = 0
    clipped: int = 0
    norm_average: float = 0.0

    def progress(self, budget: Budget) -> float:
        """Return the larger of the shares of tokens and of time that are used up, at most 1."""
        shares = [0.0]
        if budget.tokens is not None:
            shares.append(self.tokens / budget.tokens if budget.tokens else 1.0)
        if budget.seconds is not None:
            shares.append(self.seconds / budget.seconds if budget.seconds else 1.0)
        return min(max(shares), 1.0)

    def middle(self, budget: Budget, step_tokens: int) -> float:
        """Return the progress in the middle of the step to come, which has ``step_tokens`` tokens."""
        share = step_tokens / budget.tokens if budget.tokens else 0.0
        if budget.seconds and self.step:
            share = max(share, self.seconds / self.step / budget.seconds)
        return min(self.progress(budget) + 0.5 * share, 1.0)

    def good_step(self, norm: float, clip_norm: float | None) -> None:
        """Count a step whose gradient of length ``norm`` was used."""
        memory = _NORM_MEMORY if self.norm_average else 0.0
        self.norm_average = memory * self.norm_average + (1.0 - memory) * norm
        self.clipped += int(clip_norm is not None and norm > clip_norm)
        self.nonfinite_in_a_row = 0

    def advance(self, tokens: int, sequences: int, seconds: float) -> None:
        """Go to the next step."""
        self.step += 1
        self.tokens += tokens
        self.sequences += sequences
        self.seconds += seconds

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Position:
        return cls(**state)


@dataclass(frozen=True)
class Schedule:
    """The learning rate's factor over a run, in tokens.

    ``kind``: a name in `optim.schedules.SCHEDULES`. The warm-up is ``warmup_tokens``, or ``warmup_ratio`` of the
    budget. ``decay_ratio`` is the share of the budget in which wsd decays; all decay to ``min_ratio`` of the peak.
    """

    kind: str = "wsd"
    warmup_tokens: int | None = None
    warmup_ratio: float = 0.05
    decay_ratio: float = 0.2
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise unknown_name("schedule.kind", self.kind, SCHEDULES)
        for name in ("warmup_ratio", "decay_ratio", "min_ratio"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"schedule.{name}: found {getattr(self, name)}, allowed is 0 to 1")

    def factors(self, progress: float, budget: Budget) -> tuple[float, float]:
        """Return the shares of the peak learning rate and of the peak weight decay at ``progress``."""
        total = budget.tokens or _NOMINAL_TOKENS
        warmup = round(self.warmup_ratio * total) if self.warmup_tokens is None else self.warmup_tokens
        tokens = round(progress * total)
        rate = lr_factor(self.kind, tokens, total, min(warmup, total), self.decay_ratio, self.min_ratio)
        return rate, weight_decay_factor(self.kind, tokens, total)
