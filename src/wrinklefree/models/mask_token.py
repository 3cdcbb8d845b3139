"""The MASK token of a diffusion model: in the tokenizer, in the embedding, and in what a checkpoint says of itself.

It is a token of its own, never one that means something else. Its embedding starts as the mean of the vocabulary plus
a little noise: a random row would have entries far larger than any token's, and the absmax of a token's activations
would leave the other channels few of their 8 bits; without the noise nothing tells it from the mean.
Source: arXiv 2512.15745 (noise on the mask row when an autoregressive model is converted). Differs: the size of the
noise is ours.

MASK is an input only. No objective finds it probable (`objectives.head`), and decoding never chooses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from wrinklefree.artifact.diffusion_marker import DiffusionMarker as DiffusionMarker  # what a checkpoint says of MASK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASK_TOKEN = "|<MASK>|"  # the name that Fast-dLLM v2's checkpoints use
_NOISE = 0.1  # of a channel's standard deviation over the vocabulary
_SEED = 0


def add_mask_token(model: nn.Module, tokenizer: PreTrainedTokenizerBase, token: str = MASK_TOKEN) -> int:
    """Give ``model`` and ``tokenizer`` a MASK token, in place, and return its id.

    A tokenizer that has a mask token keeps it. An unused row of the embedding is taken where there is one; else the
    embedding and the head grow by exactly the rows that are missing. Its rows are set as the module says, by a
    generator of their own, so that teacher and student get the same and no random state moves.
    """
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": token})
    mask_id = int(tokenizer.mask_token_id)
    tables = ["model.embed_tokens", "lm_head"]
    if model.get_submodule("lm_head").weight is model.get_submodule("model.embed_tokens").weight:
        tables.pop()
    rows = _weight(model, tables[0]).shape[0]
    known = [token for token in range(min(len(tokenizer), rows)) if token != mask_id]
    before = [_weight(model, table)[known] for table in tables]
    if mask_id >= rows:
        with torch.random.fork_rng():
            model.resize_token_embeddings(mask_id + 1, mean_resizing=False)  # type: ignore[operator]
    for table, vocabulary in zip(tables, before, strict=True):
        _set_row(_weight(model, table), mask_id, vocabulary.float())
    return mask_id


def _weight(model: nn.Module, table: str) -> torch.Tensor:
    weight: torch.Tensor = model.get_submodule(table).weight.detach()  # type: ignore[operator]
    return weight


@torch.no_grad()
def _set_row(weight: torch.Tensor, row: int, vocabulary: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randn(vocabulary.shape[1], generator=generator).to(vocabulary.device)
    weight[row] = (vocabulary.mean(dim=0) + _NOISE * vocabulary.std(dim=0) * noise).to(weight.dtype)
