"""Sampling from a Hugging Face model, several prompts at once, each with random numbers of its own.

A row's tokens follow from its prompt and its seed, and, by rounding, from the shape of the batch it is in. The engine
(`wrinklefree.engine`) is the fast way for packed models; this one is for teachers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

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
    found: list[list[int]] = [[] for _ in prompts]
    cache = None
    for _ in range(max_tokens):
        places = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        output = model(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        chosen = [
            _choose(row, temperature, top_p, generator)
            for row, generator in zip(output.logits[:, -1].float().cpu(), generators, strict=True)
        ]
        for tokens, token in zip(found, chosen, strict=True):
            if not tokens or tokens[-1] not in ends:
                tokens.append(token)
        if all(tokens[-1] in ends for tokens in found):
            break
        ids = torch.tensor(chosen, device=device)[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return found


def _choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token of float32 logits [V]; one random number is drawn whatever they are."""
    draw = float(torch.rand((), generator=generator))
    if temperature == 0.0:
        return int(logits.argmax())
    # The most probable tokens nearly always decide, and sorting the whole vocabulary costs more than the model.
    found = _among(logits, min(_FIRST_LOOK, len(logits)), temperature, top_p, draw)
    if found is None:
        found = _among(logits, len(logits), temperature, top_p, draw)
    assert found is not None
    return found


def _among(logits: Tensor, count: int, temperature: float, top_p: float, draw: float) -> int | None:
    """Look among the ``count`` most probable tokens, in falling order, of equal ones the lower id first.

    None: what is looked for lies behind them (never with all of the vocabulary).
    """
    scaled = logits.double() / temperature
    tokens = logits.topk(count, sorted=False).indices.sort().values
    order = logits[tokens].sort(descending=True, stable=True).indices
    tokens = tokens[order]
    upto = (scaled[tokens] - torch.logsumexp(scaled, dim=0)).exp().cumsum(dim=0)
    everything = count == len(logits)
    if not everything and float(upto[-1]) < (top_p if top_p < 1.0 else draw):
        return None
    kept = min(int(torch.searchsorted(upto, top_p)) + 1 if top_p < 1.0 else count, count)
    mass = float(upto[kept - 1]) if top_p < 1.0 or everything else 1.0
    place = int(torch.searchsorted(upto[:kept], draw * mass, right=True))
    chosen = int(tokens[min(place, kept - 1)])
    # Of the tokens as probable as the last one here, others may lie behind it, with a lower id.
    return None if not everything and logits[chosen] == logits[tokens[-1]] else chosen


_FIRST_LOOK = 512
