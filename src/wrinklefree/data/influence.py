"""What a training sequence is worth to a probe set: influence from gradients, as pure functions of vectors.

Every score here is positive when training on the sequence lowers the loss of the probe. (Papers on influence state
the opposite sign: the change of the loss.) A "layer" is whatever one block of the Hessian stands for: here a
parameter tensor.

Shapes: n training sequences, L landmarks among them, d values of a layer's gradient, m of its projection, e of an
embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wrinklefree.data.permutation import key, mix, permute
from wrinklefree.errors import InputError

Kernel = Literal["rbf", "linear"]
_SIGNS, _ROWS = 11, 12  # purposes of the projection's random numbers
DAMPING = 0.1


@dataclass(frozen=True)
class LayerGradients:
    """One layer's gradients: ``train`` [n, m] of single sequences, ``probe`` [m] the mean over the probe.

    ``size``: the layer's number of parameters d, which is more than m when the gradients are projected.
    """

    train: Tensor
    probe: Tensor
    size: int


def datainf_scores(layers: Sequence[LayerGradients]) -> Tensor:
    """Return [n]: what each training sequence is worth to the probe, summed over ``layers``.

    Source: arXiv 2310.00902 (DataInf), equation 5 and Algorithm 1: H^-1 v is approximated by the mean over i of
    (lambda I + g_i g_i^T)^-1 v, each inverse written out by Sherman and Morrison, with the paper's lambda, 0.1 times
    the mean square of the gradients' entries. The score is + v^T H^-1 g_k, the negative of the paper's influence.
    """
    total = torch.zeros(layers[0].train.shape[0], dtype=torch.float64)
    for layer in layers:
        gradients, probe = layer.train.double().cpu(), layer.probe.double().cpu()
        total += gradients @ inverse_hessian_vector(gradients, probe, damping(gradients, layer.size))
    return total


def damping(gradients: Tensor, size: int) -> float:
    """Return lambda of a layer of ``size`` parameters: 0.1 * sum |g_i|^2 / (n size), for gradients [n, m]."""
    return DAMPING * float(gradients.double().square().sum()) / (gradients.shape[0] * size)


def inverse_hessian_vector(gradients: Tensor, vector: Tensor, damp: float) -> Tensor:
    """Return [m]: the mean over the gradients [n, m] of (damp I + g_i g_i^T)^-1 vector, in O(n m)."""
    if damp == 0.0:  # every gradient is zero: the layer has nothing to say
        return torch.zeros_like(vector)
    shares = (gradients @ vector) / (damp + gradients.square().sum(1))
    return (vector - shares @ gradients / gradients.shape[0]) / damp


def landmark_scores(
    embeddings: Tensor, landmarks: Tensor, landmark_gradients: Tensor, probe: Tensor, ridge: float = 1e-2,
    kernel: Kernel = "rbf",
) -> Tensor:  # fmt: skip
    """Return [n]: the worth of every sequence from the exact gradients of a few.

    ``embeddings`` [n, e]: cheap ones of every sequence. ``landmarks`` int64 [L]: which of them have an exact gradient,
    ``landmark_gradients`` [L, m]. ``probe`` [m]. A landmark's own worth is the product of its gradient, brought to
    length 1, with the probe's.

    Source: arXiv 2505.19051 (Influence Distillation), the first-order form: p = C p_L with C the coefficients below.
    """
    lengths = landmark_gradients.double().norm(dim=1, keepdim=True).clamp_min(1e-30)
    worth = (landmark_gradients.double() / lengths) @ probe.double()
    return landmark_coefficients(embeddings, landmarks, ridge, kernel) @ worth.cpu()


def landmark_coefficients(embeddings: Tensor, landmarks: Tensor, ridge: float, kernel: Kernel = "rbf") -> Tensor:
    """Return C [n, L] = K_EL (K_LL + ridge I)^-1, by which values at the landmarks are carried to every sequence.

    ``kernel`` rbf: exp(-|a - b|^2 / (2 s^2)) with s the median distance between landmarks; linear: a^T b.
    ``ridge`` is relative to the mean of the kernel's diagonal, so that it means the same for both.

    Raises: InputError when there is no landmark, or the ridge is not above 0.
    """
    if not len(landmarks) or ridge <= 0.0:
        raise InputError(f"landmarks: found {len(landmarks)} and a ridge of {ridge}, both must be above 0")
    points = embeddings.double().cpu()
    chosen = points[landmarks]
    if kernel == "linear":
        cross = points @ chosen.T
    else:
        distances = torch.cdist(points, chosen)
        between = distances[landmarks]
        apart = between[~torch.eye(len(landmarks), dtype=torch.bool)]
        scale = float(apart.median()) if len(apart) and float(apart.median()) > 0.0 else 1.0
        cross = torch.exp(-distances.square() / (2.0 * scale * scale))
    own = cross[landmarks]
    own = own + ridge * float(own.diagonal().mean()) * torch.eye(len(landmarks), dtype=torch.float64)
    return torch.linalg.solve(own, cross.T).T


def project(vectors: Tensor, size: int, seed: int) -> Tensor:
    """Return float32 [n, size]: a projection of ``vectors`` [n, d] that keeps products of pairs in expectation.

    Vectors of at most ``size`` values are returned as they are. Signs are drawn by (seed, index), the Hadamard
    transform spreads every value over all places, and ``size`` places are drawn of the 2^k >= d.

    Source: the subsampled randomised Hadamard transform (Ailon and Chazelle, STOC 2006; Tropp, arXiv 1011.1595).
    """
    width = vectors.shape[1]
    if width <= size:
        return vectors.float()
    padded = 1 << (width - 1).bit_length()
    signs, places = _draws(width, padded, size, seed)
    spread = vectors.new_zeros((vectors.shape[0], padded), dtype=torch.float32)
    spread[:, :width] = vectors.float() * signs.to(vectors.device)
    return hadamard(spread)[:, places.to(vectors.device)] * (padded / size) ** 0.5


@lru_cache(maxsize=16)
def _draws(width: int, padded: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """The signs int8 [width] and places int64 [size] of a projection; kept, as many vectors share one."""
    bits = mix(np.arange(width, dtype=np.uint64) ^ np.uint64(key(seed, _SIGNS))) >> np.uint64(63)
    places = permute(np.arange(size), padded, key(seed, _ROWS))
    return torch.from_numpy(1 - 2 * bits.astype(np.int8)), torch.from_numpy(places)


def hadamard(vectors: Tensor) -> Tensor:
    """Return the orthonormal Walsh-Hadamard transform of the rows of ``vectors`` [n, 2^k]."""
    rows, width = vectors.shape
    half = 1
    while half < width:
        pairs = vectors.reshape(rows, width // (2 * half), 2, half)
        left, right = pairs[:, :, 0], pairs[:, :, 1]
        vectors = torch.stack([left + right, left - right], dim=2).reshape(rows, width)
        half *= 2
    return vectors / width**0.5
