"""Toy models, batches and streams from a configuration and a seed: nothing is read from disk or network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from wrinklefree.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, TokenBatch
from wrinklefree.models.convert import convert_model
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.ternary import TernarySpec, absmean_scale

VOCABULARY = 64
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def toy_model(
    seed: int = 0,
    family: str = "llama",
    ternary: bool = False,
    subln: Any = "none",
    scales: bool = False,
    **changes: Any,
) -> nn.Module:
    """A 2-layer model; larger initial weights than usual, so that its predictions are far from uniform.

    ``subln``: of a ternary one. ``scales``: its layers learn their scales, from the absmean.
    """
    torch.manual_seed(seed)
    sizes = {**_SIZES, "initializer_range": 0.2, **changes}
    if family == "llama":
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=16))
    if ternary:
        convert_model(model, TernarySpec(), subln)
        for _, layer in bit_linears(model) if scales else ():
            layer.set_scale(absmean_scale(layer.weight.detach(), layer.spec))
    return model.eval()


def pack(rows: list[list[list[int]]], length: int) -> TokenBatch:
    """Pack documents (lists of token ids) into rows of ``length``, padded at the end."""
    ids, labels, positions, documents = ([], [], [], [])
    for row in rows:
        i, seen, p, d = [], [], [], []
        for number, document in enumerate(row):
            i += document
            seen += [IGNORE_INDEX, *document[1:]]
            p += range(len(document))
            d += [number] * len(document)
        missing = length - len(i)
        ids.append(i + [0] * missing)
        labels.append(seen + [IGNORE_INDEX] * missing)
        positions.append(p + list(range(missing)))
        documents.append(d + [PADDING_DOCUMENT] * missing)
    wide = [torch.tensor(x, dtype=torch.int64) for x in (ids, labels, positions)]
    return TokenBatch(*wide, torch.tensor(documents, dtype=torch.int32))


def random_documents(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def toy_batch(seed: int = 0) -> TokenBatch:
    """Two rows of 24: three documents, one of a single token, and padding of different length."""
    return pack([random_documents([9, 1, 10], seed), random_documents([14], seed + 1)], 24)


class ToyStream:
    """Sequence k from seed k: two documents, in every third padding; tokens rise by even steps, so can be learned."""

    def __init__(self, length: int = 24) -> None:
        self.length = length

    def batch(self, first_sequence: int, size: int) -> TokenBatch:
        return pack([self._row(k) for k in range(first_sequence, first_sequence + size)], self.length)

    def _row(self, k: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(k)
        starts = torch.randint(1, VOCABULARY, (2,), generator=generator).tolist()
        lengths = [self.length // 2, self.length // 2 - (5 if k % 3 == 0 else 0)]
        return [[(s + i * (1 + s % 3)) % VOCABULARY for i in range(n)] for s, n in zip(starts, lengths, strict=True)]


def targets_of(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Mask of predicting positions [B, T-1], and their targets [N]."""
    mask = batch.labels[:, 1:] != IGNORE_INDEX
    return mask, batch.labels[:, 1:][mask]
