"""What slots hold is used again: an answer whose prompt begins like an earlier one computes only the rest.

Only what would be computed to the last bit the same is taken over, so that no answer depends on who asked before it.
Two things decide the bits of a position's keys and values besides the tokens up to it: the attention rule (causal, or
blocks of B: then whole blocks only), and whether its row was computed alone or beside others of its slot, as the two
kernels add up in a different order. A prompt's rows are computed in company, those of decoding token by token alone:
the latter never serve a prompt. The last rows of a prompt are computed anew, at least two of them where one would be
alone; where the pieces of the rest are cut changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from wrinklefree.engine.decoding import Request

LEAST = 16  # positions worth taking over, or worth waiting for; a slot is continued where no more are lost with it


@dataclass(slots=True)
class _Held:
    """Of a slot: the first ``count`` positions hold what ``tokens`` int32 [context] give under ``rule``."""

    tokens: NDArray[np.int32]
    count: int = 0
    rule: int = 0  # 1: causal; B: blocks of B
    free: bool = True
    used: int = 0  # when it was last of use; 0: never, or another slot holds the same


class PrefixCache:
    """The slots of one model and what they hold. For one thread, which alone uses these slots."""

    def __init__(self, model: Any, slots: Sequence[int]) -> None:
        """``model``: the native model; ``slots``: of it, all free."""
        self._model = model
        self._held = {slot: _Held(np.empty(model.context, np.int32)) for slot in slots}
        self._clock = 0

    @property
    def free(self) -> int:
        """Slots that no answer has."""
        return sum(held.free for held in self._held.values())

    def take(self, request: Request) -> tuple[int, int]:
        """Give a free slot to an answer with this first request.

        Returns (slot, positions of the request that it holds already). Raises: IndexError when no slot is free.
        """
        free = [slot for slot, held in self._held.items() if held.free]
        if not free:
            raise IndexError("no slot is free")
        source, count = self.best(request)
        others = [slot for slot in free if slot != source]
        if count and source in free and (not others or self._held[source].count - count <= LEAST):
            slot = source
            self._model.truncate(slot, count)
        else:
            slot = min(others or free, key=lambda each: (self._held[each].used, each))
            self._model.truncate(slot, 0)
        held = self._held[slot]
        held.free = False
        if slot == source and count:
            held.count = count
        else:
            held.count = 0
            if count:
                self.copy(source, slot, count)
        return slot, count

    def release(self, slot: int) -> None:
        """Take a slot back; what it holds is kept until its place is needed."""
        held = self._held[slot]
        held.free = True
        self._clock += 1
        held.used = self._clock
        for other, found in self._held.items():
            if other == slot or found.rule != held.rule:
                continue
            shorter, longer = sorted((held, found), key=lambda each: each.count)
            if shorter.free and _common(shorter.tokens, longer.tokens, shorter.count) == shorter.count:
                shorter.used = 0  # nothing is lost with it

    def best(self, request: Request) -> tuple[int, int]:
        """Return the slot that holds the most positions of a first request, and how many; (-1, 0) for none."""
        rule, most = rule_of(request)
        found = -1, 0
        for slot, held in self._held.items():
            if held.rule == rule and min(held.count, most) > found[1]:
                count = usable(request, _common(request.tokens, held.tokens, min(held.count, most)))
                if count > found[1]:
                    found = slot, count
        return found

    def copy(self, source: int, target: int, count: int) -> None:
        """Let a slot hold the first positions of another one, and nothing else."""
        self._model.copy_prefix(source, target, count)
        held, origin = self._held[target], self._held[source]
        held.tokens[:count] = origin.tokens[:count]
        held.count, held.rule = count, origin.rule
        self._clock += 1
        origin.used = self._clock

    def computed(self, slot: int, request: Request, begin: int, end: int) -> None:
        """Learn that a pass has computed the tokens ``begin`` to ``end`` of a request in a slot."""
        held = self._held[slot]
        if request.alone or (end - begin == 1 and request.block == 1):
            held.count = min(held.count, request.start + begin)
            return
        split = min(max(request.head, begin), end)
        for first, last, rule in ((begin, split, request.head_block), (split, end, request.block)):
            if first < last:
                self._rows(held, request.start + first, request.tokens[first:last], rule)

    @staticmethod
    def _rows(held: _Held, position: int, tokens: NDArray[np.int32], rule: int) -> None:
        """Learn of consecutive rows, computed together with the attention of ``rule``."""
        if position > held.count:
            return  # behind what does not count
        if position == 0:
            held.rule = rule
        held.count = position // rule * rule if rule > 1 else position
        if held.rule != rule or held.count != position or (rule == 1 and len(tokens) == 1):
            return  # another rule, part of a block whose rest is stale, or a row alone
        end = position + len(tokens)
        held.tokens[position:end] = tokens
        held.count = end // rule * rule

    def lost(self, slot: int, position: int) -> None:
        """Forget what a slot holds from a position on."""
        held = self._held[slot]
        held.count = min(held.count, position)


def rule_of(request: Request) -> tuple[int, int]:
    """Return the attention rule of a first request's beginning, and how many positions could be taken over.

    Wanted rows and the last row are computed in any case.
    """
    rule, most = (request.head_block, request.head) if request.head else (request.block, len(request.tokens))
    if request.start or request.alone or request.want == "all":
        return rule, 0
    most = min(most, len(request.tokens) - 1)
    return rule, min(most, request.want[0]) if isinstance(request.want, tuple) and request.want else most


def usable(request: Request, common: int) -> int:
    """Return how many of the first ``common`` positions can be taken over without changing a bit of the rest."""
    rule, most = rule_of(request)
    count = min(common, most)
    if rule > 1:
        count -= count % rule
    elif (request.head or len(request.tokens)) - count == 1:
        count -= 1  # the last row would be alone
    return count if count >= LEAST else 0


def shared(request: Request, other: Request) -> int:
    """Return how many positions a first request can take over once another first request has been computed."""
    rule, most = rule_of(request)
    theirs = other.head or len(other.tokens)
    if other.start or other.alone or rule != (other.head_block if other.head else other.block) or theirs < 2:
        return 0
    return usable(request, _common(request.tokens, other.tokens, min(most, theirs)))


def _common(one: NDArray[np.int32], other: NDArray[np.int32], most: int) -> int:
    """Return how many of the first ``most`` tokens are the same."""
    differ = one[:most] != other[:most]
    first = int(differ.argmax()) if most else 0
    return first if most and differ[first] else most
