"""What was written against what it was written from: parts read back, logits of engines, loss on held-out text.

`check_parts` is exact: the reader of the format has to give every code, scale, table and gain of the plan. The rest
runs models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wrinklefree.artifact.parts import ModelParts, NormPart, Part, TablePart, TernaryPart
from wrinklefree.data.python_docs import HELD_OUT_TOPICS, topics
from wrinklefree.engine import Engine, SamplingParams
from wrinklefree.engine.decoding_settings import DecodingSettings
from wrinklefree.errors import VerificationError
from wrinklefree.export.hf_model import SUB_NORMS
from wrinklefree.export.verify import PROMPTS, CodesCheck
from wrinklefree.models.subln import SubLayerNorm
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.low_rank import LowRankBitLinear
from wrinklefree.quant.ternary import expand_scale

# Tokens of held-out text for a loss: enough that a damage of one per cent stands out of its standard error, and a
# small model reads them in seconds.
LOSS_TOKENS = 1024
_WINDOW = 256


def check_parts(expected: ModelParts, found: ModelParts) -> CodesCheck:
    """Compare a file that was read back with what should be in it, part by part.

    A weight is its code times its scale; scales are compared where a code is not zero, because a type without scales
    (F16) keeps none elsewhere.

    Raises: VerificationError naming the first part that is missing, surplus or different.
    """
    theirs = {part.name: part for part in found.parts}
    names = [part.name for part in expected.parts]
    if missing := [name for name in names if name not in theirs]:
        raise VerificationError(f"{missing[0]}: is not in the file that was written")
    if surplus := sorted(theirs.keys() - set(names)):
        raise VerificationError(f"{surplus[0]}: is in the file that was written, not in its source")
    zeros_source = zeros_written = weights = layers = 0
    for part in expected.parts:
        other = theirs[part.name]
        if isinstance(part, TernaryPart) and isinstance(other, TernaryPart):
            codes, written = _check_layer(part, expected, other, found)
            zeros_source += codes.size - int(np.count_nonzero(codes))
            zeros_written += written.size - int(np.count_nonzero(written))
            weights += codes.size
            layers += 1
        else:
            _check_values(part, other)
    if zeros_source != zeros_written:
        raise VerificationError(f"{zeros_written} codes of the file are zero, {zeros_source} of its source")
    return CodesCheck(layers, zeros_source / weights, zeros_written / weights)


def _check_layer(
    part: TernaryPart, expected: ModelParts, other: TernaryPart, found: ModelParts
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    codes, scales = part.codes_and_scales()
    written, stored = other.codes_and_scales()
    if not np.array_equal(codes, written):
        raise VerificationError(f"{part.name}: the file's codes are not the source's")
    ours = _columns(scales, part.shape, expected.info.group_size)
    theirs = _columns(stored, other.shape, found.info.group_size)
    if not np.array_equal(codes * ours, written * theirs):
        raise VerificationError(f"{part.name}: the file's scales are not what the source's became")
    biases = [np.zeros(len(codes), np.float32) if p.bias is None else p.bias for p in (part, other)]
    if not np.array_equal(biases[0], biases[1]):
        raise VerificationError(f"{part.name}: the file's bias is not the source's")
    if part.rank != other.rank:
        raise VerificationError(f"{part.name}: the file's low-rank correction is not the source's")
    return codes, written


def _columns(scales: NDArray[np.float32], shape: tuple[int, int], group_size: int) -> NDArray[np.float32]:
    """Return scales that a matrix of this shape can be multiplied by."""
    if scales.ndim == 2:
        return np.repeat(scales, group_size, axis=1)[:, : shape[1]]
    return scales.reshape(-1, 1)


def _check_values(part: Part, other: Part) -> None:
    if isinstance(part, TablePart) and isinstance(other, TablePart):
        same = np.array_equal(part.read(), other.read())
    elif isinstance(part, NormPart) and isinstance(other, NormPart):
        same = np.array_equal(part.gains, other.gains)
    else:
        raise VerificationError(f"{part.name}: is {type(other).__name__} in the file, {type(part).__name__} here")
    if not same:
        raise VerificationError(f"{part.name}: the file's values are not what the source's became")


@contextmanager
def as_written(model: nn.Module, fitted: ModelParts) -> Iterator[None]:
    """Give a torch model the codes, scales and corrections that a file holds, and its own back afterwards.

    The latents become codes times scales, whose codes are these codes again. A SubLN norm keeps its own epsilon here;
    where the file has the model's instead, the scale before the norm is taken back by what made up for that.
    """
    own = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    learned = {name: m.weight_scale for name, m in model.named_modules() if isinstance(m, BitLinear)}
    modules = dict(model.named_modules())
    factors = _epsilon_factors(modules, fitted)
    try:
        for part in fitted.parts:
            if isinstance(part, TernaryPart):
                layer = modules[part.name]
                assert isinstance(layer, BitLinear)
                _set_layer(layer, part, factors.get(part.name, 1.0))
        yield
    finally:
        for name, scale in learned.items():
            modules[name].weight_scale = scale
        for tensor, data in own:
            tensor.data = data


def _epsilon_factors(modules: Mapping[str, nn.Module], fitted: ModelParts) -> dict[str, float]:
    """Return by what `one_epsilon` multiplied the scales of layers before a SubLN norm."""
    eps = float(fitted.config["rms_norm_eps"])
    factors = {}
    for part in fitted.parts:
        module = modules[part.name]
        if isinstance(part, NormPart) and part.eps is None and isinstance(module, SubLayerNorm):
            owner, _, norm = part.name.rpartition(".")
            if float(module.eps) != float(np.float32(eps)):
                factors[f"{owner}.{SUB_NORMS[norm]}"] = math.sqrt(eps / float(module.eps))
    return factors


def _set_layer(layer: BitLinear, part: TernaryPart, factor: float) -> None:
    codes, scales = part.codes_and_scales()
    shape = layer.spec.scale_shape(layer.out_features, layer.in_features)
    wide = np.broadcast_to(scales.astype(np.float64) / factor, shape).astype(np.float32)
    scale = torch.from_numpy(wide).to(layer.weight.device)
    values = torch.from_numpy(codes).to(scale) * expand_scale(scale, layer.spec, layer.in_features)
    layer.weight.data = values.to(layer.weight.dtype)
    layer.weight_scale = nn.Parameter(scale)
    if isinstance(layer, LowRankBitLinear) and not part.rank:
        layer.low_rank_u.data = torch.zeros_like(layer.low_rank_u)


@dataclass(frozen=True)
class EngineAgreement:
    """How the engine on the written file agrees with the engine on the source.

    Cosines are of the logits of one position; ``loss_*`` are in nats a token of held-out text, None without any.
    """

    logit_cosine_min: float
    logit_cosine_mean: float
    logit_max_abs_difference: float
    greedy_tokens_equal: int
    greedy_tokens: int
    loss_source: float | None
    loss_written: float | None
    loss_tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_engines(
    source: Engine, written: Engine, prompts: Sequence[str] = PROMPTS, greedy_tokens: int = 32
) -> EngineAgreement:
    """Return how alike two engines are: on prompts with the source's greedy answers, and on held-out documentation.

    The held-out text is the bundled one that no recipe of ours trains on (`data.python_docs.HELD_OUT_TOPICS`).
    """
    lowest, cosines, largest, equal, total = 1.0, [], 0.0, 0, 0
    for prompt in prompts:
        start = source.tokenizer.encode(prompt)[: max(1, source.context // 2)]
        tokens, other = (_greedy(engine, start, greedy_tokens) for engine in (source, written))
        different = np.flatnonzero(np.asarray(tokens) != np.asarray(other[: len(tokens)]))
        equal += int(different[0]) if different.size else len(tokens)
        total += len(tokens)
        read = [*start, *tokens][:-1]
        a, b = (engine.logits(read).astype(np.float64) for engine in (source, written))
        given = np.isfinite(a[0]) & np.isfinite(b[0])
        a, b = a[:, given], b[:, given]
        cosine = (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
        cosines += cosine.tolist()
        lowest, largest = min(lowest, float(cosine.min())), max(largest, float(np.abs(a - b).max()))
    windows = _held_out(source)
    before, after = (_loss(engine, windows) if windows else None for engine in (source, written))
    scored = sum(len(window) - 1 for window in windows)
    return EngineAgreement(lowest, float(np.mean(cosines)), largest, equal, total, before, after, scored)


def _greedy(engine: Engine, prompt: list[int], num_tokens: int) -> list[int]:
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, top_p=1.0, seed=0, ignore_eos=True)
    return engine.generate(prompt, params, DecodingSettings("ar")).run().tokens


def _held_out(engine: Engine) -> list[list[int]]:
    """Return windows of tokens of the held-out topics."""
    size = min(_WINDOW, engine.context)
    windows: list[list[int]] = []
    for document in topics():
        if document.id in HELD_OUT_TOPICS:
            ids = engine.tokenizer.encode(document.text)
            windows += [window for i in range(0, len(ids), size) if len(window := ids[i : i + size]) > 1]
        if sum(map(len, windows)) >= LOSS_TOKENS:
            break
    return windows[: max(1, LOSS_TOKENS // size)]


def _loss(engine: Engine, windows: Sequence[Sequence[int]]) -> float:
    """Mean negative log likelihood in nats of each token after the first of its window."""
    total = count = 0.0
    for window in windows:
        logits = engine.logits(window)[:-1].astype(np.float64)
        targets = np.asarray(window[1:])
        usable = np.isfinite(logits[np.arange(len(targets)), targets])  # not a banned token
        peak = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]
        total += float((log_sum - logits[np.arange(len(targets)), targets])[usable].sum())
        count += float(usable.sum())
    return total / max(count, 1.0)
