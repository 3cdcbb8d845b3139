"""The mask of block diffusion against a triple loop over rows, queries and keys; the same as a flex_attention mask."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wrinklefree.data.batch import IGNORE_INDEX
from wrinklefree.errors import InputError
from wrinklefree.models.block_attention import (
    CLEANS,
    NOISED,
    AttentionRule,
    BlockBatch,
    block_mask,
    flex_block_mask,
    mask_function,
)
from wrinklefree.models.forward import LOGITS, forward

sys.path.append(str(Path(__file__).parents[1] / "train"))
from train_toys import toy_model

RULES = [AttentionRule(n, c) for n, c in itertools.product(NOISED, CLEANS)]
SIZE = 3


def layout(lengths: list[list[int]], rule: AttentionRule, tokens: int = 14) -> BlockBatch:
    """Rows of documents of these lengths, noised half first; the rest is padding."""
    columns: dict[str, list[list[int]]] = {name: [] for name in ("position", "document", "block")}
    for row in lengths:
        position = [i for length in row for i in range(length)]
        document = [number for number, length in enumerate(row) for _ in range(length)]
        missing = tokens - len(position)
        columns["position"].append(2 * (position + [0] * missing))
        columns["document"].append(2 * (document + [-1] * missing))
        columns["block"].append(2 * ([i // SIZE for i in position] + [-1] * missing))
    position, document, block = (torch.tensor(columns[name]) for name in ("position", "document", "block"))
    ids = torch.arange(position.numel()).view_as(position) % 50
    return BlockBatch(
        input_ids=ids, labels=torch.full_like(ids, IGNORE_INDEX), position_ids=position,
        document_ids=document.to(torch.int32), block_ids=block.to(torch.int32),
        noised=(torch.arange(2 * tokens) < tokens).expand_as(ids), rule=rule,
    )  # fmt: skip


def slow_mask(batch: BlockBatch) -> Tensor:
    rows, slots = batch.input_ids.shape
    mask = torch.zeros(rows, 1, slots, slots, dtype=torch.bool)
    for b, q, k in itertools.product(range(rows), range(slots), range(slots)):
        if batch.document_ids[b, q] != batch.document_ids[b, k]:
            continue
        i, j = int(batch.position_ids[b, q]), int(batch.position_ids[b, k])
        mine, its = int(batch.block_ids[b, q]), int(batch.block_ids[b, k])
        if batch.noised[b, q] and batch.noised[b, k]:
            sees = mine == its and (batch.rule.noised == "bidirectional" or j <= i)
        elif batch.noised[b, q]:
            sees = its < mine
        elif batch.noised[b, k]:
            sees = False
        else:
            sees = its <= mine if batch.rule.clean == "block_causal" else j <= i
        mask[b, 0, q, k] = sees
    return mask


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_mask_is_that_of_the_loop_over_queries_and_keys(rule: AttentionRule) -> None:
    batch = layout([[7, 1, 4], [14], [3, 3]], rule)
    mask = block_mask(batch)
    assert torch.equal(mask, slow_mask(batch))
    assert mask.any(dim=-1).all()  # softmax has something to normalise, in padding too


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_flex_attention_is_given_the_same_mask(rule: AttentionRule) -> None:
    from torch.nn.attention.flex_attention import create_mask

    batch = layout([[7, 1, 4], [14]], rule)
    rows, slots = batch.input_ids.shape
    assert torch.equal(create_mask(mask_function(batch), rows, 1, slots, slots, device="cpu"), block_mask(batch))


def test_an_unknown_rule_is_an_input_error() -> None:
    wrong: Any = "casual"
    with pytest.raises(InputError, match="did you mean 'causal'"):
        AttentionRule(noised=wrong)
    with pytest.raises(InputError, match="did you mean 'causal'"):
        AttentionRule(clean=wrong)


def test_without_noise_and_blocks_it_is_the_causal_forward() -> None:
    """A clean, causal half alone gives exactly the logits of the plain forward: `forward` reads the batch's mask."""
    model, batch = toy_model(1), layout([[7, 1, 4], [14]], AttentionRule(clean="causal"))
    half = slice(14, 28)
    plain = BlockBatch(
        **{
            name: getattr(batch, name)[:, half]
            for name in ("input_ids", "labels", "position_ids", "document_ids", "block_ids", "noised")
        },
        rule=batch.rule,
    )
    with torch.no_grad():
        ours = forward(model, plain, frozenset({LOGITS})).logits
        both = forward(model, batch, frozenset({LOGITS})).logits
        model.config._attn_implementation = "eager"  # type: ignore[union-attr]
        eager = forward(model, plain, frozenset({LOGITS})).logits
        for row, lengths in enumerate([[7, 1, 4], [14]]):
            begin = 0
            for length in lengths:
                alone = model(plain.input_ids[row, begin : begin + length][None]).logits[0]
                torch.testing.assert_close(ours[row, begin : begin + length], alone, rtol=1e-4, atol=1e-4)  # type: ignore[index]
                begin += length
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, both[:, half], rtol=1e-4, atol=1e-4)  # type: ignore[index]


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_flex_attention_gives_the_states_of_the_explicit_mask(rule: AttentionRule) -> None:
    """Only where there is a GPU: there flex_attention skips the tiles that nobody sees."""
    model, batch = toy_model(1, head_dim=16).cuda(), layout([[7, 1, 4], [14]], rule).to("cuda")
    with torch.no_grad():
        expected = forward(model, batch).final
        model.config._attn_implementation = "flex_attention"  # type: ignore[union-attr]
        assert isinstance(batch, BlockBatch) and flex_block_mask(batch).shape[-1] == 28
        found = forward(model, batch).final
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
