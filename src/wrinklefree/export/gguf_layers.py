"""Which GGUF type a ternary layer gets, what padding it needs, and its scales as that type holds them.

A type that cannot hold a layer exactly is never chosen: codes times a float16 scale are exact in every type of
`COLUMNS` whose blocks fit into the columns that share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.types import TYPES
from wrinklefree.artifact.one_scale import one_scale
from wrinklefree.artifact.parts import ModelParts, Part, TernaryPart
from wrinklefree.errors import InputError
from wrinklefree.export.fit import (
    HALF_ROUNDING,
    Conversion,
    Kind,
    half_scales,
    pad_inner,
    refusal,
    with_scales,
)

# Columns that make a whole number of blocks; I2_S has no blocks in the file, its kernels read 128 codes at once.
COLUMNS = {"TQ1_0": 256, "TQ2_0": 256, "I2_S": 128, "Q2_0": 64, "Q4_0": 32, "Q8_0": 32, "F16": 1}


@dataclass(frozen=True)
class LayerType:
    """The type of one layer, and why it is not the one that was asked for.

    ``beside``: what a tensor beside the weight multiplies the products by, float32; None where there is none.
    """

    type: str
    reason: str = ""
    beside: float | None = None


def one_scale_each(
    model: ModelParts, wanted: str, lossy: bool, columns: int = 1
) -> tuple[ModelParts, list[Conversion]]:
    """Return a model with one scale for each layer whose columns are a multiple of ``columns``.

    ``wanted`` names the format or type that has one only, for messages. Other layers go into another type and keep
    their scales. Where all layers have one, so has the model.

    Raises: InputError for the first such layer that has several, unless ``lossy``: then the nearest one is taken.
    """
    if model.info.granularity == "tensor":
        return model, []
    parts: list[Part] = []
    conversions, single = [], True
    for part in model.parts:
        if isinstance(part, TernaryPart):
            codes, scales = part.codes_and_scales()
            if part.shape[1] % columns == 0 and not (scales == scales.flat[0]).all():
                scales, said = _merged(model, part, codes, scales, wanted, lossy)
                conversions.append(said)
                part = with_scales(part, scales)
            single &= bool((scales == scales.flat[0]).all())
        parts.append(part)
    if single:
        parts = [with_scales(p, _first_scale(p)) if isinstance(p, TernaryPart) else p for p in parts]
        model = replace(model, info=replace(model.info, granularity="tensor"))
    return replace(model, parts=tuple(parts)), conversions


def _merged(
    model: ModelParts, part: TernaryPart, codes: NDArray[np.int8], scales: NDArray[np.float32], wanted: str, lossy: bool
) -> tuple[NDArray[np.float32], Conversion]:
    """Return one scale in place of several, in their shape."""
    if not lossy:
        per = "row" if model.info.granularity == "row" else f"{model.info.group_size} columns"
        what = f"has a scale for each {per}, {wanted} has one for a tensor"
        raise refusal(model, part.name, what, "packed, gguf-tq1_0, gguf-tq2_0")
    one = one_scale(codes, scales, model.info.group_size)
    if scales.ndim == 2:  # beside layers with groups, whose scales are float16 everywhere
        one, _ = half_scales(one)
    what = f"{scales.size} scales became one, {float(one[0]):.6g}"
    return np.broadcast_to(one, scales.shape).copy(), Conversion(part.name, "lossy", what)


def _first_scale(part: TernaryPart) -> NDArray[np.float32]:
    return part.codes_and_scales()[1].reshape(-1)[:1]


def choose_types(model: ModelParts, wanted: str, fallback: str, may_pad: bool) -> tuple[dict[str, LayerType], int]:
    """Return each ternary layer's type, and the inner dimension of the feed-forward that the file gets.

    Padding that dimension to whole blocks of ``wanted`` is chosen where it costs fewer bytes than another type, or
    where ``fallback`` is none.

    Raises: InputError for the first layer that does not fit when ``fallback`` is none.
    """
    layers = [part for part in model.parts if isinstance(part, TernaryPart)]
    inner, step = int(model.config["intermediate_size"]), COLUMNS[wanted]
    sizes = sorted({inner, -(-inner // step) * step}) if may_pad else [inner]
    costs = {}
    for size in sizes:
        types = {part.name: _type(model, _shape(part, size), wanted, fallback) for part in layers}
        costs[size] = sum(
            TYPES[kind.type].num_bytes(_shape(part, size))
            for part in layers
            if (kind := types[part.name]) is not None
        ) if None not in types.values() else float("inf")  # fmt: skip
    size = min(costs, key=lambda size: (costs[size], size))
    chosen = {}
    for part in layers:
        kind = _type(model, _shape(part, size), wanted, fallback)
        if kind is None:
            what = f"{model.place}: {part.name}: {_reason(model, part.shape, wanted)}, so {wanted} cannot hold it"
            if fallback != "none":
                raise InputError(f"{what}, and no other type of GGUF does; nothing was written. packed holds it")
            raise InputError(
                f"{what}; nothing was written. Give --fallback q4_0, q2_0, q8_0 or f16, which hold such layers exactly"
            )
        chosen[part.name] = kind
    return chosen, size


def padding(model: ModelParts, size: int, wanted: str) -> tuple[ModelParts, list[Conversion]]:
    """Return the model with its feed-forward's inner dimension padded to ``size``, and what to say of it."""
    inner = model.config["intermediate_size"]
    if size == inner:
        return model, []
    what = (
        f"inner dimension {inner} padded with zeros to {size}: {wanted} needs multiples of {COLUMNS[wanted]}, and this "
        "costs fewer bytes than another type for down_proj"
    )
    return pad_inner(model, size), [Conversion("model.layers.*.mlp", "exact", what)]


def _shape(part: TernaryPart, inner: int) -> tuple[int, int]:
    rows, columns = part.shape
    if part.name.endswith((".gate_proj", ".up_proj")):
        return inner, columns
    return (rows, inner) if part.name.endswith(".down_proj") else (rows, columns)


def _type(model: ModelParts, shape: tuple[int, int], wanted: str, fallback: str) -> LayerType | None:
    if _fits(model, shape, wanted):
        return LayerType(wanted)
    if fallback != "none":
        for other in (fallback.upper(), "Q4_0", "F16"):
            if _fits(model, shape, other):
                return LayerType(other, _reason(model, shape, wanted))
    return None


def _fits(model: ModelParts, shape: tuple[int, int], kind: str) -> bool:
    if shape[1] % COLUMNS[kind]:
        return False
    grouped, size = model.info.granularity == "group", model.info.group_size
    # Floats say no scale: a reader finds one for each 64 columns, or for a row.
    return not grouped or (shape[1] if kind == "F16" else size) % (64 if kind == "F16" else COLUMNS[kind]) == 0


def _reason(model: ModelParts, shape: tuple[int, int], wanted: str) -> str:
    step = COLUMNS[wanted]
    if shape[1] % step:
        return f"{shape[1]} columns are no multiple of {step}"
    return f"a scale for each {model.info.group_size} columns, and {wanted} has one for {step}"


def stored_scales(
    model: ModelParts, part: TernaryPart, kind: LayerType, beside: bool, lossy: bool
) -> tuple[TernaryPart, LayerType, Conversion | None]:
    """Return a layer with its scales as the file holds them.

    I2_S keeps float32. Blocks keep float16, which is said. With ``beside`` a scale of the whole layer that float16
    would change goes into a tensor beside the weight, in float32; of scales that are out of float16's range a power of
    two does.

    Raises: InputError for a scale that float16 does not hold, unless ``lossy``.
    """
    said = [f"{kind.type}: {kind.reason}"] if kind.reason else []
    if kind.type == "I2_S":
        return part, kind, Conversion(part.name, "exact", said[0]) if said else None
    how: Kind = "exact"
    _, scales = part.codes_and_scales()
    half, change = half_scales(scales)
    if change and beside and scales.shape == (1,):
        kind = replace(kind, beside=float(scales[0]))
    elif change:
        factor = np.float32(1)
        if change > HALF_ROUNDING and beside and scales.ndim == 1:
            factor = np.exp2(np.floor(np.log2(np.abs(scales).max()))).astype(np.float32)
            kind = replace(kind, beside=float(factor))
            half, change = half_scales(scales / factor)
        if not np.isfinite(half).all() or (change > HALF_ROUNDING and not lossy):
            what = f"a scale of {_extreme(scales):.3g} is out of the range of {kind.type}'s float16"
            raise refusal(model, part.name, what, "packed" + ", gguf-i2_s" * (scales.shape == (1,)))
        part = with_scales(part, half * factor)
        how = "rounded" if change <= HALF_ROUNDING else "lossy"
        said.append(f"scale rounded to float16, changed by {change:.1e} of itself at most")
    return part, kind, Conversion(part.name, how, "; ".join(said)) if said else None


def _extreme(scales: NDArray[np.float32]) -> float:
    """The scale that float16 changes most."""
    wide = np.abs(scales).reshape(-1)
    return float(wide.max() if wide.max() > 65504 else wide.min())
