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
) -> list[list[int]]:
    """Return for each prompt at most ``max_tokens`` new tokens, up to and with the first of ``ends``.

    ``temperature`` 0 takes the most probable token. ``top_p``: of the smallest set of tokens with that probability.

    Raises: InputError for an empty prompt, or one that leaves no room in the model's positions.
    """
    longest = max(map(len, prompts))
    room = getattr(model.config, "max_position_embeddings", None)
    if min(map(len, prompts)) == 0:
        raise InputError("prompt: found one without any token; give text, or a model that begins with BOS")
    if room is not None and longest + max_tokens > room:
        raise InputError(f"max_tokens: {longest} of a prompt and {max_tokens} new ones, the model has {room} places")
    device = next(model.parameters()).device
    # Prompts end together; what stands before a short one is masked and has no place.
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    found: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # the prompts that the model still works on
    cache: Any = None
    for step in range(max_tokens):
        places = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, **last
        )
        cache = output.past_key_values
        draws = [float(torch.rand((), generator=generators[row])) for row in rows]
        chosen = choose(output.logits[:, -1], temperature, top_p, draws)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if not found[row] or found[row][-1] not in ends:
                found[row].append(token)
        going_on = [place for place, row in enumerate(rows) if found[row][-1] not in ends]
        if not going_on or step + 1 == max_tokens:
            break
        ids = chosen[:, None]
        if len(going_on) <= len(rows) * (1.0 - _ENDED):
            kept = torch.tensor(going_on, device=device)
            cache.batch_select_indices(kept)
            ids, mask, rows = ids[kept], mask[kept], [rows[place] for place in going_on]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return found


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
_ENDED = 0.125  # with this share of the rows ended they are left out; taking rows out copies the cache once
