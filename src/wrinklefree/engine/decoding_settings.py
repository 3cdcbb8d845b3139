"""How tokens are decided: one by one, by blocks, or proposed and verified."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from wrinklefree.errors import InputError, unknown_name

Mode = Literal["auto", "ar", "block", "speculative"]
MODES: tuple[Mode, ...] = ("auto", "ar", "block", "speculative")
DEFAULT_SUB_BLOCK = 8
MAX_WINDOW = 64


@dataclass(frozen=True)
class DecodingSettings:
    """The decoding of one answer; every value is checked when the object is made.

    ``mode``: ``ar`` one token a pass; ``block`` block diffusion; ``speculative`` proposes masked positions and verifies
    them, with the output distribution of ``ar``; ``auto`` what the model was trained for.

    Of block mode: ``threshold``: tokens more probable than this are decided in a pass, at least the most probable.
    ``tokens_per_forward``: so many instead, the most probable. ``entropy_bound`` (nats): instead the tokens of least
    entropy, as long as the sum of their entropies less the largest stays within it, at least one. ``sub_block``:
    positions of a block that are open at a time, a grid from the block's start; None takes 8, or the block if smaller.

    Of speculative mode: ``window``: masked positions in a pass; None chooses by the measured cost of rows and by what
    was accepted so far. With temperature above 0 a seed gives the same text again only with the same window.

    Sources: arXiv 2509.26328 (blocks, sub-blocks, threshold); arXiv 2505.24857, section 3 (entropy bound);
    arXiv 2604.11035 (verified proposals).

    Raises: InputError naming the setting, what was found and what is allowed.
    """

    mode: Mode = "auto"
    threshold: float = 0.9
    tokens_per_forward: int | None = None
    entropy_bound: float | None = None
    sub_block: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_name("mode", self.mode, MODES)
        _check_number("threshold", self.threshold, 1.0)
        for name, most in (("tokens_per_forward", 1 << 20), ("sub_block", 1 << 20), ("window", MAX_WINDOW)):
            found = getattr(self, name)
            if found is not None and (type(found) is not int or not 1 <= found <= most):
                raise InputError(f"{name}: found {found!r:.80}, allowed is an integer from 1 to {most}")
        if self.entropy_bound is not None:
            _check_number("entropy_bound", self.entropy_bound, math.inf)
        if self.tokens_per_forward is not None and self.entropy_bound is not None:
            raise InputError("tokens_per_forward and entropy_bound: found both, they are two rules; give one")


def _check_number(name: str, found: object, most: float) -> None:
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if not number or not math.isfinite(found) or not 0 <= found <= most:  # type: ignore[arg-type,operator]
        bound = f"from 0 to {most:g}" if math.isfinite(most) else "of at least 0"
        raise InputError(f"{name}: found {found!r:.80}, allowed is a number {bound}")
