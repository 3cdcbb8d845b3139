"""What a job may cost, and the limits that make it so: a price for each machine, and a deadline."""

from __future__ import annotations

from dataclasses import dataclass

from wrinklefree.errors import InputError


@dataclass(frozen=True)
class Estimate:
    """``seconds`` of the whole job, None when nothing bounds it; ``dollars_per_hour`` of all machines together.

    ``basis``: one sentence that says what the figures follow from.
    """

    seconds: float | None
    dollars_per_hour: float | None
    basis: str

    @property
    def dollars(self) -> float | None:
        """Return the cost, None when time or price is unknown."""
        if self.seconds is None or self.dollars_per_hour is None:
            return None
        return self.seconds / 3600.0 * self.dollars_per_hour

    def line(self) -> str:
        """Return the estimate for a reader."""
        time = "time unknown" if self.seconds is None else f"{self.seconds / 3600.0:,.1f} hours"
        price = "price unknown" if self.dollars_per_hour is None else f"${self.dollars_per_hour:,.2f} an hour"
        total = "" if self.dollars is None else f" = ${self.dollars:,.2f}"
        return f"{time} x {price}{total} ({self.basis})"


@dataclass(frozen=True)
class Cap:
    """``seconds`` after its start a job must have ended; one machine may cost ``machine_dollars_per_hour``."""

    dollars: float
    seconds: float
    machine_dollars_per_hour: float


def cap(estimate: Estimate, max_dollars: float | None, machines: int) -> Cap | None:
    """Return the limits that keep a job of ``machines`` machines below ``max_dollars``, None when there is no cap.

    Both together are the proof: no machine costs more, and none runs longer.

    Raises: InputError when the price is unknown, or the estimate is over the cap.
    """
    if max_dollars is None:
        return None
    if max_dollars <= 0.0:
        raise InputError(f"--max-dollars {max_dollars:g}: it must be above 0")
    if not estimate.dollars_per_hour:
        raise InputError(
            "--max-dollars: the price of these machines is unknown; give --price DOLLARS for one GPU an hour"
        )
    if estimate.dollars is not None and estimate.dollars > max_dollars:
        raise InputError(
            f"--max-dollars {max_dollars:g}: the estimate is over it, {estimate.line()}; nothing was started. Take a "
            "smaller budget (budget.total_tokens, budget.max_steps), other GPUs, or a larger cap"
        )
    seconds = max_dollars / estimate.dollars_per_hour * 3600.0
    return Cap(max_dollars, seconds, estimate.dollars_per_hour / machines)
