"""Self-speculative decoding against decoding token by token: the same text greedily, the same distribution drawn."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffusion_toys import EOS, MASK, diffusion_toy, text
from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.errors import InputError
from wrinklefree.models.self_speculation import acceptance, decode_speculatively, residual


@torch.no_grad()
def token_by_token(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits[MASK] = float("-inf")
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


def test_greedy_text_is_that_of_decoding_token_by_token_in_fewer_forwards() -> None:
    model, marker = diffusion_toy("causal")
    for known, window, count in ((5, 1, 20), (12, 4, 40), (31, 7, 23)):
        prompt = text(known, known)
        out = decode_speculatively(model, marker, prompt, count, window)
        assert out.ids == token_by_token(model, prompt, count)
        assert out.accepted <= out.proposed and 2 * out.forwards < 2 + 1.9 * count
        # Every forward gives one token more than it accepts; what it gives beyond the limit is not wanted.
        assert 0 <= out.forwards + out.accepted - count <= window


def test_the_context_and_an_end_token_end_the_text() -> None:
    model, marker = diffusion_toy("causal")
    prompt = text(3, 9)
    out = decode_speculatively(model, marker, prompt, 50, context=20)
    assert out.ids == token_by_token(model, prompt, 12)  # eleven positions, and the last needs none
    end = out.ids[6]
    ended = decode_speculatively(model, marker, prompt, 50, eos_ids=[end])
    assert ended.ids == out.ids[: out.ids.index(end) + 1]


@pytest.mark.parametrize("seed", range(3))
def test_a_draft_verified_is_distributed_as_a_token_drawn(seed: int) -> None:
    """Exactly: over all drafts, q times acceptance, and what the residual adds, is p. Some probabilities are 0."""
    numbers = np.random.default_rng(seed)
    p, q = (torch.from_numpy(each / each.sum()) for each in np.maximum(numbers.normal(size=(2, 9)), 0.0))
    out = torch.zeros(9, dtype=torch.float64)
    for token in q.nonzero()[:, 0].tolist():
        accepted = acceptance(p, q, token)
        out += q[token] * (1 - accepted) * residual(p, q)
        out[token] += q[token] * accepted
    torch.testing.assert_close(out, p)
    torch.testing.assert_close(residual(p, p), p)


def test_random_numbers_decide_what_is_accepted() -> None:
    """Two drafts of a flattened distribution: with 0 they are accepted, with almost 1 the first is not."""
    model, marker = diffusion_toy("causal")

    def flat(logits: torch.Tensor, history: Any) -> torch.Tensor:
        return (logits.double() / 4).softmax(dim=-1)

    low = decode_speculatively(model, marker, text(0, 8), 12, 2, distribution=flat)
    assert low.accepted == low.proposed > 0
    numbers = itertools.cycle([0.7, 0.999999])
    high = decode_speculatively(model, marker, text(0, 8), 12, 2, distribution=flat, uniform=lambda: next(numbers))
    assert high.accepted < high.proposed and len(high.ids) == 12 and MASK not in high.ids


@pytest.mark.parametrize(
    ("variant", "given", "message"),
    [
        ("fast_dllm", {}, "found a model of variant fast_dllm, clean_half block_causal"),
        ("fast_dllm_causal_clean_half", {}, "found a model of variant fast_dllm, clean_half causal"),
        ("causal", {"prompt": []}, "a prompt of 0 tokens"),
        ("causal", {"window": 0}, "window 0"),
        ("causal", {"context": 2}, "a prompt of 3 tokens, the context has 2"),
    ],
)
def test_what_cannot_be_decoded_so_is_refused(variant: str, given: dict[str, Any], message: str) -> None:
    clean: Any = "causal" if variant != "fast_dllm" else "block_causal"
    marker = DiffusionMarker(MASK, 16, True, variant.partition("_causal")[0], clean)
    with pytest.raises(InputError, match=message):
        decode_speculatively(
            diffusion_toy("causal")[0], marker, **{"prompt": [1, 2, 3], "max_new_tokens": 4, "eos_ids": [EOS], **given}
        )
