"""The noised view of a batch: which tokens become MASK, where they lie, and from which state each is predicted.

Every document of a row is cut into blocks of ``block_size`` tokens, counted from its beginning, so a block never holds
tokens of two documents. For each block a mask ratio t ~ U(0, 1) is drawn, and each token that may be masked is masked
with probability t. May not be masked: padding, and what is no target (the first token of a document, which nothing
predicts, and what the labels ignore).

What the student sees is a row of two halves, [noised | clean], with the attention of `models.block_attention`. Both
halves have the positions of their tokens. With ``whole_blocks`` a document's last block is filled up with MASK to its
full size in the noised half, because decoding cannot know where a document will end; nothing is predicted there.

``complementary``: the row appears twice, first with mask m, then with 1 - m, so that each token is predicted once.
``token_shift``: token i is predicted by the state before it. Within a block that is the noised state i - 1. For the
first token of a block it is the clean state i - 1, the last one of the finished block before: the very state that
decoding has. Without shift, token i is predicted by the noised state i.

What is drawn follows from the seed and the sequence's number alone: no state, the same on every device and for every
number of processes, the same when a run is resumed.

Sources: arXiv 2509.26328, section 3.2; arXiv 2502.09992, equation 3 (1/t); docs/objectives.md says where we differ.

Shapes: B rows, T tokens, S slots of the noised half, V views (2 with a complement, else 1), K blocks of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wrinklefree.artifact.diffusion_marker import VARIANTS, Variant
from wrinklefree.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, Rows, TokenBatch
from wrinklefree.data.permutation import key, mix
from wrinklefree.errors import InputError, unknown_name
from wrinklefree.models.block_attention import AttentionRule, BlockBatch, Clean

NOISED_VIEW = "noised"
MASKED = "masked"
CLEAN_HALF = "clean_half"
DRAFTS = "drafts"
_PURPOSE = 0x6D61736B  # keeps these numbers apart from those of the data's order
_LEAST_RATIO = 1e-3  # below it, 1/t is a weight of more than 1000 on a single token


@dataclass(frozen=True)
class Diffusion:
    """How the view is noised; None takes what the ``variant`` says.

    ``fast_dllm``: bidirectional blocks, token shift, complementary pairs.
    ``llada``: weight 1/t, no shift, no pairs; with ``block_size`` null a document is one block, fully bidirectional.
    ``causal``: as fast_dllm, but strictly causal in both halves, so that the decoded text can be verified against the
    model's own next-token distribution.

    ``clean_half``: attention of the clean half. Only a ``causal`` one can carry a next-token loss: under
    ``block_causal`` a state sees the token it would have to predict. ``min_ratio``, ``max_ratio`` bound t (both 1: all
    tokens of a block are masked).
    """

    variant: Variant = "fast_dllm"
    block_size: int | None = 32
    complementary: bool | None = None
    token_shift: bool | None = None
    clean_half: Clean | None = None
    whole_blocks: bool = True
    min_ratio: float = 0.0
    max_ratio: float = 1.0
    mask_token: str = "|<MASK>|"

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise unknown_name("diffusion.variant", self.variant, VARIANTS)
        if self.block_size is not None and self.block_size < 2:
            raise InputError(f"diffusion.block_size: found {self.block_size}, at least 2 tokens (or null) are needed")
        if self.block_size is None and self.variant != "llada":
            raise InputError(f"diffusion.block_size: null, one block for a document, needs variant=llada, not "
                             f"{self.variant}")  # fmt: skip
        if self.block_size is None and self.clean_half is not None:
            raise InputError("diffusion.clean_half: with block_size null there is no clean half; remove it")
        if not 0.0 <= self.min_ratio <= self.max_ratio <= 1.0 or self.max_ratio == 0.0:
            raise InputError("diffusion: 0 <= min_ratio <= max_ratio <= 1 is needed, and max_ratio above 0")
        if self.complementary and (self.weighted or self.min_ratio == 1.0):
            why = "the weights 1/t of variant=llada" if self.weighted else "min_ratio=1, which masks everything"
            raise InputError(f"diffusion.complementary: does not go with {why}; remove it")
        _ = self.rule

    @property
    def weighted(self) -> bool:
        """Whether a token counts 1/t."""
        return self.variant == "llada"

    @property
    def num_views(self) -> int:
        """Return 2 when each row appears with its complement, else 1."""
        pairs = not self.weighted and self.min_ratio < 1.0
        return 2 if (pairs if self.complementary is None else self.complementary) else 1

    @property
    def positions_per_token(self) -> int:
        """Positions of the view for each token of the clean batch, at the least (filled-up blocks are more)."""
        return self.num_views * (1 if self.block_size is None else 2)

    @property
    def shift(self) -> bool:
        """Whether the state before a token predicts it."""
        return self.variant != "llada" if self.token_shift is None else self.token_shift

    @property
    def rule(self) -> AttentionRule:
        """Return how far a query sees within its half."""
        causal = self.variant == "causal"
        clean: Clean = self.clean_half or ("causal" if causal else "block_causal")
        return AttentionRule("causal" if causal else "bidirectional", clean)


@dataclass(frozen=True, kw_only=True)
class NoisedBatch(BlockBatch):
    """V B rows of S + T slots, [noised | clean] (S slots when there is no clean half).

    ``slots`` int64 [V B, S]: the token of the clean batch, flattened, that each noised slot holds; -1 for filling.
    ``counted``: the number of tokens that a sum over the masked ones is divided by.
    """

    slots: Tensor
    shifted: bool
    counted: int
    num_masked: int
    selections: dict[str, Rows] = field(default_factory=dict)

    def selection(self, name: str = MASKED) -> Rows:
        if name not in self.selections:
            raise InputError(
                f"objective: it predicts the {name!r} tokens, but this noised view has {' and '.join(self.selections)} "
                "(a next-token loss on the clean half needs diffusion.clean_half=causal)"
            )
        return self.selections[name]


def noised_view(settings: Diffusion, mask_token_id: int, seed: int) -> Callable[[TokenBatch], NoisedBatch]:
    """Return the function that makes the noised view of a clean batch."""
    return lambda batch: noised(batch, settings, mask_token_id, seed)


@dataclass(frozen=True)
class _Blocks:
    """Of each token [B, T]: its block in the row (-1 on padding) and in its document, its slot; and the slots' number.

    ``starts`` [B, K]: index of each block's first token in its row, -1 for no block.
    """

    in_row: Tensor
    in_document: Tensor
    slot: Tensor
    starts: Tensor
    num_slots: int


def noised(batch: TokenBatch, settings: Diffusion, mask_token_id: int, seed: int) -> NoisedBatch:
    """Return the noised view of ``batch``, whose sequences must be numbered.

    Raises: InputError when they are not.
    """
    if batch.sequence_ids is None:
        raise InputError("noised view: the sequences of the batch have no numbers (TokenBatch.numbered)")
    blocks = _cut(batch, settings)
    eligible = (batch.labels != IGNORE_INDEX) & (batch.document_ids != PADDING_DOCUMENT)
    masked, ratio = _draw(batch, blocks, eligible, settings, seed)
    masks = torch.stack([masked, eligible & ~masked][: settings.num_views])  # [V, B, T]
    half = _noised_half(batch, blocks, settings, mask_token_id)
    views = settings.num_views
    slots = half["slots"].repeat(views, 1)
    ids = half["input_ids"].repeat(views, 1)
    labels = torch.full_like(ids, IGNORE_INDEX)
    view, sequence, place = torch.nonzero(masks, as_tuple=True)
    row, slot = view * batch.num_sequences + sequence, blocks.slot[sequence, place]
    ids[row, slot] = mask_token_id
    labels[row, slot] = batch.labels[sequence, place]
    noised_half = {
        "input_ids": ids,
        "labels": labels,
        **{name: half[name].repeat(views, 1) for name in ("position_ids", "document_ids", "block_ids")},
        "noised": torch.ones_like(ids, dtype=torch.bool),
    }
    clean = _clean_half(batch, blocks, views) if settings.block_size is not None else {}
    columns = {
        name: torch.cat([value, *([clean[name]] if clean else [])], dim=1) for name, value in noised_half.items()
    }
    width = ids.shape[1] + (batch.labels.shape[1] if clean else 0)
    selections = {MASKED: _masked_rows(batch, blocks, settings, ratio, (view, sequence, place), width)}
    if clean and settings.rule.clean == "causal":
        selections[CLEAN_HALF] = _clean_rows(batch, blocks.num_slots, width)
        selections[DRAFTS] = _drafts(batch, blocks, selections[MASKED], (view, sequence, place), width)
    return NoisedBatch(
        **columns,
        sequence_ids=batch.sequence_ids.repeat(views),
        rule=settings.rule,
        slots=slots,
        shifted=settings.shift,
        # With weights 1/t, the expected weight of a token that may be masked is 1 in each view.
        counted=int(eligible.sum()) * views if settings.weighted else len(place),
        num_masked=len(place),
        selections=selections,
    )


def _cut(batch: TokenBatch, settings: Diffusion) -> _Blocks:
    """Cut every document into blocks; a new one begins at each multiple of the block size within a document."""
    real = batch.document_ids != PADDING_DOCUMENT
    size = settings.block_size or (1 << 40)
    begins = real & (batch.position_ids % size == 0)
    in_row = torch.where(real, begins.cumsum(dim=1) - 1, -1)
    in_document = torch.where(real, batch.position_ids // size, -1)
    places = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand_as(in_row)
    most = int(in_row.max()) + 1 if in_row.numel() else 0
    starts = torch.full((batch.num_sequences, max(most, 1)), -1, device=in_row.device)
    sequence, place = torch.nonzero(begins, as_tuple=True)
    starts[sequence, in_row[sequence, place]] = place
    if settings.block_size is None or not settings.whole_blocks:
        return _Blocks(in_row, in_document, places, starts, in_row.shape[1])
    slot = in_row * size + batch.position_ids % size
    return _Blocks(in_row, in_document, torch.where(real, slot, 0), starts, starts.shape[1] * size)


def _draw(
    batch: TokenBatch, blocks: _Blocks, eligible: Tensor, settings: Diffusion, seed: int
) -> tuple[Tensor, Tensor]:
    """Return which tokens are masked, bool [B, T], and the ratio t of each token's block, float32 [B, T].

    Without weights at least one token of every block that has any is masked: the one with the smallest draw.
    """
    assert batch.sequence_ids is not None
    length, most = eligible.shape[1], blocks.starts.shape[1]
    draws = np.stack([_uniform(seed, int(number), length + most) for number in batch.sequence_ids.tolist()])
    drawn = torch.from_numpy(draws).to(eligible.device)
    least = max(settings.min_ratio, _LEAST_RATIO) if settings.weighted else settings.min_ratio
    ratio = least + (max(settings.max_ratio, least) - least) * drawn[:, length:]
    index = blocks.in_row.clamp(min=0)
    values = torch.where(eligible, drawn[:, :length], 2.0)
    if not settings.weighted:
        smallest = torch.full_like(ratio, 2.0).scatter_reduce(1, index, values, "amin")
        ratio = torch.maximum(ratio, smallest.masked_fill(smallest > 1.0, 0.0))
    of_token = ratio.gather(1, index)
    return eligible & (values <= of_token), of_token.float()


def _uniform(seed: int, sequence: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return float64 [size] in [0, 1), the numbers of one sequence."""
    counters = np.arange(size, dtype=np.uint64) + np.uint64(key(seed, _PURPOSE, sequence))
    return (mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _noised_half(batch: TokenBatch, blocks: _Blocks, settings: Diffusion, mask_token_id: int) -> dict[str, Tensor]:
    """Return the clean tokens in their slots, [B, S]; slots that fill up a block hold MASK, those of no block too."""
    number, length = batch.input_ids.shape
    shape, device = (number, blocks.num_slots), batch.input_ids.device
    sequence, place = torch.nonzero(blocks.in_row >= 0, as_tuple=True)
    slot = blocks.slot[sequence, place]
    slots = torch.full(shape, -1, device=device)
    slots[sequence, slot] = sequence * length + place
    ids = torch.full(shape, mask_token_id, dtype=batch.input_ids.dtype, device=device)
    ids[sequence, slot] = batch.input_ids[sequence, place]
    if settings.block_size is None or not settings.whole_blocks:
        return {
            "slots": slots, "input_ids": ids, "position_ids": batch.position_ids, "document_ids": batch.document_ids,
            "block_ids": blocks.in_document.to(torch.int32),
        }  # fmt: skip
    # Of every slot: the first token of its block, from which document and position follow.
    within = torch.arange(blocks.num_slots, device=device)
    start = blocks.starts[:, within // settings.block_size]
    at = start.clamp(min=0)
    none = start < 0
    return {
        "slots": slots, "input_ids": ids,
        "position_ids": batch.position_ids.gather(1, at) + within % settings.block_size,
        "document_ids": batch.document_ids.gather(1, at).masked_fill(none, PADDING_DOCUMENT),
        "block_ids": blocks.in_document.gather(1, at).masked_fill(none, -1).to(torch.int32),
    }  # fmt: skip


def _clean_half(batch: TokenBatch, blocks: _Blocks, views: int) -> dict[str, Tensor]:
    half = {
        "input_ids": batch.input_ids,
        "labels": torch.full_like(batch.labels, IGNORE_INDEX),
        "position_ids": batch.position_ids,
        "document_ids": batch.document_ids,
        "block_ids": blocks.in_document.to(torch.int32),
        "noised": torch.zeros_like(batch.input_ids, dtype=torch.bool),
    }
    return {name: value.repeat(views, 1) for name, value in half.items()}


def _masked_rows(
    batch: TokenBatch,
    blocks: _Blocks,
    settings: Diffusion,
    ratio: Tensor,
    masked: tuple[Tensor, Tensor, Tensor],
    width: int,
) -> Rows:
    """The states that predict the masked tokens: see the module for a block's first token."""
    view, sequence, place = masked
    state = blocks.slot[sequence, place]
    if settings.shift:
        first = blocks.starts[sequence, blocks.in_row[sequence, place]] == place
        state = torch.where(first, blocks.num_slots + place - 1, state - 1)
    length = batch.labels.shape[1]
    return Rows(
        states=(view * batch.num_sequences + sequence) * width + state,
        targets=batch.labels[sequence, place].long(),
        teacher=sequence * length + place - 1,
        weights=1.0 / ratio[sequence, place] if settings.weighted else None,
    )


def _clean_rows(batch: TokenBatch, num_slots: int, width: int) -> Rows:
    """Each token from the one before it, in the clean half of the first view: its complement has the same half."""
    sequence, place = torch.nonzero(batch.labels[:, 1:] != IGNORE_INDEX, as_tuple=True)
    return Rows(
        states=sequence * width + num_slots + place,
        targets=batch.labels[sequence, place + 1].long(),
        teacher=sequence * batch.labels.shape[1] + place,
    )


def _drafts(batch: TokenBatch, blocks: _Blocks, rows: Rows, masked: tuple[Tensor, Tensor, Tensor], width: int) -> Rows:
    """The masked tokens that a noised state predicts, and the clean state that predicts each of them."""
    view, sequence, place = masked
    clean = (view * batch.num_sequences + sequence) * width + blocks.num_slots + place - 1
    noised = torch.nonzero(rows.states != clean)[:, 0]
    return Rows(states=rows.states[noised], targets=rows.targets[noised], teacher=clean[noised], own=True)
