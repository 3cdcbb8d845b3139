"""A teacher's weights in 8 or 4 bits, so that it takes a quarter or an eighth of float32's memory; never trained.

Every linear layer but the head keeps its weight as integers and scales, and makes it whole again for each product:
activations stay as they are, so the only error is that of the weights.

- ``int8``: one scale a row, round(w / s), s = max|w| / 127.
- ``nf4``: blocks of 64 weights of a row, scaled by their max|w| to [-1, 1], then the nearest of 16 levels, which are
  quantiles of a normal distribution. Source: arXiv 2305.14314, section 3 and appendix E (the levels). Differs: the
  scales are float16 and not quantised a second time.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wrinklefree.errors import InputError
from wrinklefree.quant.bitlinear import BitLinear

LowBits = Literal["int8", "nf4"]
_BLOCK = 64
_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_ENCODE_WEIGHTS = 1 << 22  # at once, so that 64-bit indices of a large matrix never exist


class LowBitLinear(nn.Module):
    """y = x W^T + b with W [out, in] kept in ``bits``; x in any floating dtype, float32 scales of the products."""

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, bits: LowBits) -> None:
        super().__init__()
        self.bits = bits
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        codes, scales = _int8(weight.float()) if bits == "int8" else _nf4(weight.float())
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return W [out, in] as the codes say."""
        if self.bits == "int8":
            return self.codes.to(dtype) * self.scales.to(dtype)
        levels = torch.tensor(_LEVELS, dtype=dtype, device=self.codes.device)
        pairs = torch.stack([self.codes & 15, self.codes >> 4], dim=-1).flatten().int()
        blocks = levels[pairs].view(-1, _BLOCK) * self.scales.to(dtype)
        return blocks.view(self.out_features, -1)[:, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}"


def reduce_weights(model: nn.Module, bits: LowBits) -> None:
    """Replace, in place, every linear layer but the head.

    Raises: InputError when the model is ternary already, or has no linear layer.
    """
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if any(isinstance(layer, BitLinear) for _, layer in found):
        raise InputError(f"teacher.weights={bits}: this teacher is ternary; give its full-precision original")
    changed = 0
    for name, layer in found:
        if name != "lm_head":  # tied to the embedding in many models, and read as a plain layer by the losses
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LowBitLinear(layer, bits))
            changed += 1
    if not changed:
        raise InputError(f"teacher.weights={bits}: the teacher has no linear layer")


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, tied ones once."""
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [out, in], scales float32 [out, 1]."""
    scales = weight.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127.0
    return (weight / scales).round().clamp(-127, 127).to(torch.int8), scales


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8, two weights each, the first in the low bits; scales float16 [blocks, 1]; rows padded to blocks."""
    missing = -weight.shape[1] % _BLOCK
    blocks = F.pad(weight, (0, missing)).view(-1, _BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True).clamp(2.0**-24, 65504.0).half()
    levels = torch.tensor(_LEVELS, device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    near = [torch.bucketize(part, between) for part in (blocks / scales.float()).flatten().split(_ENCODE_WEIGHTS)]
    codes = torch.cat(near).to(torch.uint8).view(-1, 2)
    return codes[:, 0] | (codes[:, 1] << 4), scales
