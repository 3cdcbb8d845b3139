"""Block-diffusion decoding in torch, as plainly as it can be said: the reference, not the fast way.

The text is decided block by block; positions count from the beginning of the sequence, the prompt included. The
current block holds what is known of it and MASK for the rest. A forward gives a distribution for each MASK; the
confident ones are decided, and so on until nothing in the block is waited for. The attention is that of training
(`models.block_attention`): finished blocks are the clean half, the current one is the noised half. All positions of a
block exist as long as it is current, also those behind the limit, because training fills blocks up.

Only the first sub-block (of ``sub_block`` positions, counted from the block's beginning) that waits for a token may
decide. Without sub-blocks every forward computes all positions anew. With them a forward computes the whole block only
when a sub-block begins, otherwise only its rows, and the others of the block keep the keys and values of their last
computation. For a bidirectional model that is another result than computing everything, by definition.

Nothing behind a decided end token is waited for. MASK is never chosen, nor padding unless it ends texts.

Sources: arXiv 2509.26328, sections 3.3 and 3.4 (confidence threshold; sub-blocks whose surroundings are stale);
arXiv 2505.22618, section 3.2 (DualCache); arXiv 2505.24857 (entropy bound). Differs: with token shift the
first token of a block may be decided together with others, where 2509.26328 decides it alone, from the forward that
finishes the block before. It sees the same state here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.errors import InputError
from wrinklefree.models.block_states import CachedStates, FullStates
from wrinklefree.models.forward import soft_capped

DEFAULT_SUB_BLOCK = 8
# Chooses the token of one waiting position: (logits float32 [V], tokens known so far in order) -> token.
Draw = Callable[[Tensor, Sequence[int]], int]


@dataclass(frozen=True)
class DecodingSettings:
    """Which positions a forward decides: one of three rules, and how far it looks.

    ``threshold``: those whose token is more probable, at least the most probable one; at 1 exactly that one.
    ``tokens_per_forward``: so many of the most probable. ``entropy_bound`` (nats): in rising entropy as many as keep
    the sum of their entropies, without the largest, within it; at least one. Equal ones: the lower position first.
    ``sub_block``: size of a sub-block; None takes 8; one not below the block's size: no sub-blocks.

    Raises: InputError for a value out of range, or two rules.
    """

    threshold: float = 0.9
    tokens_per_forward: int | None = None
    entropy_bound: float | None = None
    sub_block: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise InputError(f"threshold: found {self.threshold}, allowed is a probability from 0 to 1")
        for name in ("tokens_per_forward", "sub_block"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name}: found {value}, it must be at least 1")
        if self.entropy_bound is not None and not self.entropy_bound >= 0.0:
            raise InputError(f"entropy_bound: found {self.entropy_bound}, it must be at least 0")
        if self.tokens_per_forward is not None and self.entropy_bound is not None:
            raise InputError("tokens_per_forward and entropy_bound: two rules for the same thing; give one of them")


@dataclass(frozen=True)
class Decoded:
    """``ids``: the new tokens, up to the end token (included) or the limit; ``forwards`` it took after the prompt.

    ``computed``: rows that went through the model in all, those of the prompt included.
    """

    ids: list[int]
    forwards: int
    computed: int


@dataclass(frozen=True)
class Look:
    """What one forward says of W waiting positions, in rising order.

    ``logits`` float32 [W, V], what is never chosen at -inf. ``best`` [W]: the most probable token, the lower of equal
    ones. ``probability`` float32 [W] of it, ``entropy`` float32 [W] in nats. ``rows``: the positions computed.
    """

    positions: list[int]
    rows: list[int]
    logits: Tensor
    best: list[int]
    probability: Tensor
    entropy: Tensor

    @classmethod
    def of(cls, positions: list[int], rows: list[int], logits: Tensor) -> Look:
        """Return the look that ``logits`` [W, V] are."""
        # In float64 and rounded once, so that equal probabilities are equal and not a matter of summing.
        log_probs = logits.double().log_softmax(dim=-1)
        entropy = -torch.where(log_probs.isinf(), 0.0, log_probs.exp() * log_probs).sum(dim=-1)
        probability, best = log_probs.exp().max(dim=-1)
        return cls(positions, rows, logits, best.tolist(), probability.float(), entropy.float())

    def probability_of(self, tokens: Sequence[int]) -> Tensor:
        """Return float32 [W], the probability of one token for each position."""
        places = torch.tensor(list(tokens), device=self.logits.device)[:, None]
        return self.logits.double().softmax(dim=-1).gather(1, places)[:, 0].float()


def decode_blocks(
    model: nn.Module,
    marker: DiffusionMarker,
    prompt: Sequence[int],
    max_new_tokens: int,
    settings: DecodingSettings | None = None,
    eos_ids: Sequence[int] = (),
    draw: Draw | None = None,
    context: int | None = None,
    cached: bool = False,
) -> Decoded:
    """Return what ``model`` writes after ``prompt``.

    ``draw`` None takes the most probable tokens; else it is asked for each waiting position in rising order, and what
    it draws counts with its probability. ``context``: positions there are (None: the model's own); texts end with its
    last whole block. ``cached``: as `BlockDecoder`.

    Raises: InputError for an empty prompt, one with MASK in it or no room behind it, or nothing to decode.
    """
    settings = settings or DecodingSettings()
    decoder = BlockDecoder(model, marker, prompt, max_new_tokens, settings, eos_ids, context, cached)
    while decoder.waiting:
        look = decoder.look()
        decoder.decide(chosen(look, settings, None if draw is None else _drawn(look, draw, decoder)))
    return Decoded(decoder.answer, decoder.forwards, decoder.computed)


def chosen(look: Look, settings: DecodingSettings, tokens: Sequence[int] | None = None) -> dict[int, int]:
    """Return the positions that ``settings`` decide after a look, with their tokens.

    ``tokens`` [W]: what was drawn for each waiting position; None: the most probable ones.
    """
    probability = look.probability if tokens is None else look.probability_of(tokens)
    places = _first(probability, look.entropy, settings)
    tokens = look.best if tokens is None else tokens
    return {look.positions[place]: tokens[place] for place in sorted(places)}


class BlockDecoder:
    """One answer being decoded, a forward at a time: `look`, then `decide` what was chosen, while any is ``waiting``.

    ``ids``: prompt and current blocks, MASK where nothing is decided. ``forwards``: since the prompt's finished blocks.
    ``cached``: keep keys and values by position also where that changes nothing but the number of computed rows.
    """

    def __init__(
        self,
        model: nn.Module,
        marker: DiffusionMarker,
        prompt: Sequence[int],
        max_new_tokens: int,
        settings: DecodingSettings,
        eos_ids: Sequence[int] = (),
        context: int | None = None,
        cached: bool = False,
    ) -> None:
        self._marker, self._eos = marker, frozenset(eos_ids)
        self._mask = marker.mask_token_id
        self._prompt = len(prompt)
        self._limit = _limit(model, marker, prompt, max_new_tokens, context)
        self._size = marker.block_size or self._limit
        sub_block = settings.sub_block or DEFAULT_SUB_BLOCK
        self._sub = self._size if marker.block_size is None else min(sub_block, self._size)
        stale = self._sub < self._size and marker.rule.noised == "bidirectional"
        self._states = (CachedStates if cached or stale else FullStates)(model, marker)
        self._banned = banned_tokens(model, marker, eos_ids)
        self.ids = list(prompt)
        self.forwards = 0
        self._start = self._prompt // self._size * self._size
        self._refreshed: int | None = None  # the sub-block that began last
        self._states.finish(self.ids, 0, self._start)
        self._fill()

    @property
    def computed(self) -> int:
        """Rows that went through the model so far."""
        return self._states.computed

    @property
    def answer(self) -> list[int]:
        """The new tokens that nothing unknown stands before, up to the end token (included) or the limit."""
        known = self.ids[self._prompt : self._limit]
        stop = next((i for i, token in enumerate(known) if token == self._mask), len(known))
        end = next((i + 1 for i, token in enumerate(known) if token in self._eos), stop)
        return known[: min(stop, end)]

    @property
    def waiting(self) -> list[int]:
        """The positions that may be decided now; none when the answer is complete."""
        while not (places := self._in_block()):
            finished = self._start + self._size
            if finished >= self._limit or self._ended():
                return []
            self._states.finish(self.ids, self._start, finished)
            self._start = finished
            self._fill()
        first = self._sub_block(places[0])
        return [place for place in places if self._sub_block(place) == first]

    @torch.no_grad()
    def look(self) -> Look:
        """Compute a forward and return what it says of the waiting positions."""
        positions = self.waiting
        begin = self._sub_block(positions[0])
        if begin != self._refreshed:
            rows = list(range(self._start, self._start + self._size))
        else:
            end = min(begin + self._sub, self._start + self._size)
            rows = list(range(max(self._start, begin - self._marker.token_shift), end))
        self._refreshed = begin
        self._states.compute(self.ids, rows, self._start)
        self.forwards += 1
        return Look.of(positions, rows, self._logits(positions))

    def decide(self, tokens: Mapping[int, int]) -> None:
        """Set positions to their tokens."""
        for position, token in tokens.items():
            self.ids[position] = token

    def _logits(self, positions: Sequence[int]) -> Tensor:
        states = self._states.final([place - self._marker.token_shift for place in positions])
        head, softcap = self._states.head
        logits: Tensor = soft_capped(head(states).float(), softcap)
        logits[:, self._banned] = float("-inf")
        return logits

    def _fill(self) -> None:
        self.ids += [self._mask] * (self._start + self._size - len(self.ids))

    def _sub_block(self, position: int) -> int:
        return self._start + (position - self._start) // self._sub * self._sub

    def _ended(self) -> bool:
        return any(token in self._eos for token in self.ids[self._prompt : self._limit])

    def _in_block(self) -> list[int]:
        places: list[int] = []
        for place in range(max(self._start, self._prompt), min(self._start + self._size, self._limit)):
            if self.ids[place] in self._eos:
                break
            if self.ids[place] == self._mask:
                places.append(place)
        return places


def _drawn(look: Look, draw: Draw, decoder: BlockDecoder) -> list[int]:
    known = [token for token in decoder.ids if token != decoder._mask]
    return [draw(logits, known) for logits in look.logits]


def _first(probability: Tensor, entropy: Tensor, settings: DecodingSettings) -> list[int]:
    """Return which of the waiting positions are decided."""
    if settings.entropy_bound is not None:
        order = entropy.argsort(stable=True)
        rising = entropy[order].double()
        # The largest of a prefix in rising order is its last: the sum without it is that of those before.
        within = int((rising.cumsum(0) - rising <= settings.entropy_bound).sum())
        return order[: max(1, within)].tolist()
    ranked: list[int] = probability.argsort(descending=True, stable=True).tolist()
    if settings.tokens_per_forward is not None:
        return ranked[: settings.tokens_per_forward]
    return ranked[: max(1, int((probability > settings.threshold).sum()))]


def _limit(
    model: nn.Module, marker: DiffusionMarker, prompt: Sequence[int], max_new_tokens: int, context: int | None
) -> int:
    """Return the number of positions of prompt and answer together."""
    if not prompt or max_new_tokens < 1:
        raise InputError(
            f"block decoding: found a prompt of {len(prompt)} tokens and max_new_tokens {max_new_tokens}; needed is at "
            "least 1 of each"
        )
    if marker.mask_token_id in prompt:
        raise InputError(f"block decoding: the prompt holds the MASK token {marker.mask_token_id}, which no text has")
    size = marker.block_size or 1
    own: int = model.config.max_position_embeddings  # type: ignore[union-attr, assignment]
    room = min(context or own, own) // size * size
    if len(prompt) >= room:
        raise InputError(
            f"block decoding: found a prompt of {len(prompt)} tokens, whole blocks of {size} end at {room}"
        )
    return min(len(prompt) + max_new_tokens, room)


def banned_tokens(model: nn.Module, marker: DiffusionMarker, eos_ids: Sequence[int]) -> list[int]:
    """Return the tokens that are never chosen: MASK, and padding unless it ends texts."""
    config = model.config
    own = getattr(config, "eos_token_id", None)
    ends = {*eos_ids, *(own if isinstance(own, list | tuple) else [own])}
    pad = getattr(config, "pad_token_id", None)
    return [marker.mask_token_id, *([] if pad is None or pad in ends or pad == marker.mask_token_id else [pad])]
