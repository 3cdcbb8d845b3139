"""Sampling from a Hugging Face model, several prompts at once, each with random numbers of its own.

A row's tokens follow from its prompt and its seed, and, by rounding, from the shape of the batch it is in. The engine
(`wrinklefree.engine`) is the fast way for packed models; this one is for teachers.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.errors import InputError


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    max_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    ends: Collection[int] = (),
    rows: int | None = None,
) -> list[list[int]]:
    """Return for each prompt at most ``max_tokens`` new tokens, up to and with the first of ``ends``.

    ``temperature`` 0 takes the most probable token. ``top_p``: of the smallest set of tokens with that probability.
    ``rows``: prompts in the model at once, at most (None: all); another one takes the place of one that has ended.

    Raises: InputError for an empty prompt, or one that leaves no room in the model's positions.
    """
    longest = max(map(len, prompts))
    room = getattr(model.config, "max_position_embeddings", None)
    if min(map(len, prompts)) == 0:
        raise InputError("prompt: found one without any token; give text, or a model that begins with BOS")
    if room is not None and longest + max_tokens > room:
        raise InputError(f"max_tokens: {longest} of a prompt and {max_tokens} new ones, the model has {room} places")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    found: list[list[int]] = [[] for _ in prompts]
    width, begun = rows or len(prompts), 0
    work = _Rows(model)
    while work.numbers or begun < len(prompts):
        free = width - len(work.numbers)
        # A few at a time: to take rows in or out copies the cache once.
        if begun < len(prompts) and (not work.numbers or (work.joins and free >= width * _ENDED)):
            new = range(begun, min(begun + free, len(prompts)))
            work.take([(number, prompts[number]) for number in new])
            begun = new.stop
        draws = [float(torch.rand((), generator=generators[number])) for number in work.numbers]
        chosen = choose(work.logits, temperature, top_p, draws)
        for number, token in zip(work.numbers, chosen.tolist(), strict=True):
            if not _ended(found[number], max_tokens, ends):
                found[number].append(token)
        going_on = [place for place, n in enumerate(work.numbers) if not _ended(found[n], max_tokens, ends)]
        if not going_on or len(work.numbers) - len(going_on) >= width * _ENDED:
            work.keep(going_on)
            chosen = chosen[going_on]
        if work.numbers:
            work.advance(chosen)
    return found


def _ended(tokens: Sequence[int], max_tokens: int, ends: Collection[int]) -> bool:
    return len(tokens) == max_tokens or (bool(tokens) and tokens[-1] in ends)


class _Rows:
    """Prompts in the model: ``numbers`` of them, and ``logits`` [R, V] of their next tokens.

    They end together; what stands before a short one, in ``_mask`` [R, T] and in the cache, is masked and has no place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.numbers: list[int] = []
        self.logits: Tensor = torch.empty(0)
        self._model = model
        self._device = next(model.parameters()).device
        self._mask: Tensor = torch.empty(0)
        self._cache: Any = None
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    @property
    def joins(self) -> bool:
        """Whether prompts can join those in progress: all that was said is in the cache, at places of its own."""
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def take(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Read numbered prompts and put them behind the rows in progress."""
        longest = max(len(prompt) for _, prompt in prompts)
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for _, p in prompts], device=self._device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for _, p in prompts], device=self._device)
        logits, cache = self._forward(ids, mask, None)
        if self.numbers:
            logits = torch.cat([self.logits, logits])
            columns = max(self._mask.shape[1], mask.shape[1])
            for old, new in zip(self._cache.layers, cache.layers, strict=True):
                new.keys = torch.cat([_widened(old.keys, columns, 2), _widened(new.keys, columns, 2)])
                new.values = torch.cat([_widened(old.values, columns, 2), _widened(new.values, columns, 2)])
            mask = torch.cat([_widened(self._mask, columns, 1), _widened(mask, columns, 1)])
        self.logits, self._cache, self._mask = logits, cache, mask
        self.numbers += [number for number, _ in prompts]

    def keep(self, places: Sequence[int]) -> None:
        """Leave out all rows but those at ``places``, and the columns that only the others used."""
        self.numbers = [self.numbers[place] for place in places]
        if not places:
            return
        kept = torch.tensor(places, device=self._device)
        self._cache.batch_select_indices(kept)
        self._mask = self._mask[kept]
        if self.joins and (unused := int(self._mask.any(dim=0).int().argmax())):
            self._mask = self._mask[:, unused:]
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]

    def advance(self, tokens: Tensor) -> None:
        """Put one token [R] behind each row."""
        ids = tokens[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        self.logits, self._cache = self._forward(ids, self._mask, self._cache)

    def _forward(self, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        places = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, **self._last
        )
        return output.logits[:, -1], output.past_key_values


def _widened(tensor: Tensor, columns: int, dim: int) -> Tensor:
    """Return ``tensor`` with zeros before it, so that it has ``columns`` along ``dim``."""
    shape = list(tensor.shape)
    shape[dim] = columns - shape[dim]
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)


def choose(logits: Tensor, temperature: float, top_p: float, draws: Sequence[float]) -> Tensor:
    """Return one token a row, int64 [R], of ``logits`` [R, V]; ``draws``: R numbers in [0, 1).

    Tokens stand in falling order, of equally probable ones the lower id first; a row's token is the one at its draw.
    """
    if temperature == 0.0:
        return logits.argmax(dim=1)
    highest = logits.amax(dim=1, keepdim=True).float()
    mass = torch.cat(
        [_mass(*rows, temperature) for rows in zip(logits.split(_CACHED), highest.split(_CACHED), strict=True)]
    )
    drawn = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None]
    chosen = torch.full((len(logits),), -1, device=logits.device)
    # The most probable tokens nearly always decide, and sorting the whole vocabulary costs more than the model.
    for count in (*(count for count in _LOOKS if count < logits.shape[1]), logits.shape[1]):
        rows = (chosen < 0).nonzero()[:, 0]
        if len(rows) == 0:
            break
        every = len(rows) == len(logits)  # without a copy of the logits
        given = (logits, highest, mass, drawn) if every else (logits[rows], highest[rows], mass[rows], drawn[rows])
        chosen[rows] = _among(*given, count, temperature, top_p)
    return chosen


def _mass(logits: Tensor, highest: Tensor, temperature: float) -> Tensor:
    """The sum [R, 1] of what `_among` sums; in single precision, because all of the vocabulary is in it."""
    return (logits.float() - highest).div_(temperature).exp_().sum(dim=1, keepdim=True).double()


def _among(
    logits: Tensor, highest: Tensor, mass: Tensor, drawn: Tensor, count: int, temperature: float, top_p: float
) -> Tensor:
    """Look among the ``count`` most probable tokens; -1: what is looked for lies behind them (never with all of them).

    ``logits`` [R, V]; ``highest`` of them, ``mass`` of all and ``drawn``: [R, 1].
    """
    everything = count == logits.shape[1]
    ids = logits.topk(count, sorted=False).indices.sort(dim=1).values
    values, order = logits.gather(1, ids).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order)
    upto = (((values.float() - highest).double() / temperature).exp() / mass).cumsum(dim=1)
    if top_p < 1.0:
        last = torch.searchsorted(upto, torch.full_like(drawn, top_p)).clamp_max(count - 1)
        found_all = upto[:, -1:] >= top_p
        wanted = drawn * upto.gather(1, last)
    else:
        last = torch.full_like(ids[:, :1], count - 1)
        found_all = upto[:, -1:] >= drawn
        wanted = drawn * upto[:, -1:] if everything else drawn
    place = torch.minimum(torch.searchsorted(upto, wanted, right=True), last)
    chosen = ids.gather(1, place)
    if everything:
        return chosen[:, 0]
    # Of the tokens as probable as the last one here, others may lie behind it, with a lower id.
    certain = found_all & (values.gather(1, place) != values[:, -1:])
    return torch.where(certain, chosen, -1)[:, 0]


_LOOKS = (512, 8192)  # tokens
_CACHED = 8  # rows, small enough for a core's cache: four times as fast as all at once
_ENDED = 0.125  # share of the rows
