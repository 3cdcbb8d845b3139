"""`wf inspect`: tables of what `artifact.inspection` found."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.cli.output import Output

if TYPE_CHECKING:
    from wrinklefree.artifact.inspection.model import Inspection, TensorRow

_KINDS = {
    "packed": "a packed model",
    "checkpoint": "a ternary checkpoint",
    "hf": "a Hugging Face model",
    "gguf": "a GGUF file",
    "bin": "a .bin file of early converters",
}


def run(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="a packed model, a checkpoint or Hugging Face directory, a .gguf or .bin"),
    ],
    all_tensors: Annotated[
        bool, typer.Option("--tensors", help="list each tensor, not one line for all layers")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="write it as JSON to this file (- is standard output)")] = None,
) -> None:
    """Shows architecture, tensors, types, bits per weight, zeros, tokenizer, training stage and hashes."""
    output = Output(json)
    from wrinklefree.artifact.inspection.model import inspect_model

    found = _with_zeros(inspect_model(model))
    output.line(f"{found.path}: {_KINDS[found.kind]}")
    output.table("architecture", ("key", "value"), _pairs(found.architecture))
    columns = ("tensor", "type", "shape", "count", "bytes", "zeros")
    output.table("tensors", columns, _tensor_rows(found, all_tensors))
    if found.training:
        output.table("wrinklefree", ("key", "value"), _pairs(found.training))
    if found.tokenizer:
        output.table("tokenizer", ("key", "value"), _pairs(found.tokenizer))
    for line in _summary(found):
        output.line(line)
    output.finish(found.to_json())


def _with_zeros(found: Inspection) -> Inspection:
    """Ternarise a checkpoint's latents to know their zeros; without torch they stay unknown."""
    if found.kind != "checkpoint" or importlib.util.find_spec("torch") is None:
        return found
    from wrinklefree.export.zeros import checkpoint_zeros

    shares = checkpoint_zeros(found.path)
    return replace(found, tensors=tuple(replace(row, zeros=shares.get(row.name)) for row in found.tensors))


def _summary(found: Inspection) -> list[str]:
    lines = [
        f"{found.num_parameters:,} parameters in {found.num_bytes:,} bytes: {found.bits_per_weight:.3f} bits a weight"
    ]
    if found.scales is not None:
        lines.append(f"scales of the ternary layers: {found.scales}")
    if found.zeros is not None:
        lines.append(f"{found.zeros:.1%} of the ternary values are zero")
    marker = found.training.get("dlm")
    if found.training:
        lines.append(f"block diffusion: {marker}" if marker else "block diffusion: no marker, decodes token by token")
    if found.kind not in ("packed", "checkpoint"):
        lines.append(f"not for the engine: {found.why_not}" if found.why_not else "the engine runs it as it is")
        lines += [f"SHA-256 {digest} {name}" for name, digest in found.hashes.items()]
    if found.changed_files is not None:
        changed = ", ".join(found.changed_files)
        lines.append(
            f"SHA-256 differs from config.json: {changed}" if changed else "all files have the recorded SHA-256"
        )
    return lines


def _tensor_rows(found: Inspection, each: bool) -> Iterator[tuple[str, ...]]:
    groups: dict[tuple[Any, ...], list[TensorRow]] = {}
    for row in found.tensors:
        # Layers differ only in their number, so a table of kinds is what a person reads.
        name = row.name if each else re.sub(r"\.\d+\.", ".*.", row.name)
        groups.setdefault((name, row.type_name, row.shape), []).append(row)
    for (name, type_name, shape), rows in groups.items():
        known = [row.zeros for row in rows if row.zeros is not None]
        zeros = f"{sum(known) / len(known):.1%}" if known else ""
        size = sum(row.num_bytes for row in rows)
        yield name, type_name, " x ".join(map(str, shape)) or "scalar", str(len(rows)), f"{size:,}", zeros


def _pairs(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        yield key, "-" if value is None else str(value)
