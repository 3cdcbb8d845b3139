"""The MASK token of a diffusion model: in the tokenizer, in the embedding, and in what a checkpoint says of itself.

It is a token of its own, never one that means something else. Its embedding starts as the mean of the vocabulary plus
a little noise: a random row would have entries far larger than any token's, and the absmax of a token's activations
would leave the other channels few of their 8 bits; without the noise nothing tells it from the mean.
Source: arXiv 2512.15745 (noise on the mask row when an autoregressive model is converted). Differs: the size of the
noise is ours.

MASK is an input only. No objective finds it probable (`objectives.head`), and decoding never chooses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wrinklefree.errors import InputError
from wrinklefree.models.block_attention import CLEANS, AttentionRule, Clean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASK_TOKEN = "|<MASK>|"  # the name that Fast-dLLM v2's checkpoints use
_NOISE = 0.1  # of a channel's standard deviation over the vocabulary
_SEED = 0


@dataclass(frozen=True)
class DiffusionMarker:
    """What decoding must know of a diffusion model: ``dlm`` in the ``wrinklefree`` object of its config.json.

    ``block_size`` None: a document is one block. ``token_shift``: the state before a token predicts it.
    ``variant`` names the attention and the loss it was trained with; ``clean_half`` is the attention among finished
    tokens.
    """

    mask_token_id: int
    block_size: int | None
    token_shift: bool
    variant: str
    clean_half: Clean

    @property
    def rule(self) -> AttentionRule:
        """Return the attention: the current block is the noised half, what is finished is the clean half."""
        return AttentionRule("causal" if self.variant == "causal" else "bidirectional", self.clean_half)

    def to_json(self) -> dict[str, Any]:
        """Return the object as it stands in config.json."""
        return asdict(self)

    @classmethod
    def of(cls, raw: Mapping[str, Any] | None, place: str) -> DiffusionMarker:
        """Return the checked marker. Raises: InputError when the model was not trained for diffusion."""
        if raw is None:
            raise InputError(f"{place}: was not trained for block diffusion (no dlm marker in its config.json)")
        try:
            marker = cls(**{name: raw[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise InputError(f"{place}: its dlm marker has no {error}; train it again") from error
        sizes = (marker.mask_token_id, 0 if marker.block_size is None else marker.block_size)
        whole = all(type(size) is int and size >= 0 for size in sizes) and type(marker.token_shift) is bool
        if not whole or marker.clean_half not in CLEANS:
            raise InputError(f"{place}: its dlm marker is damaged ({dict(raw)})")
        return marker


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
