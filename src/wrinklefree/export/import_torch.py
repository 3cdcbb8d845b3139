"""What of an import needs torch: a checkpoint to train on, a plain directory as a teacher, and the second opinion."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.artifact.gguf.container import is_gguf
from wrinklefree.artifact.parts import ModelParts, TernaryPart
from wrinklefree.artifact.sources import read_parts
from wrinklefree.artifact.tables import QuantizedTable
from wrinklefree.engine import Engine
from wrinklefree.errors import VerificationError
from wrinklefree.export.verify import compare_engine_with_torch
from wrinklefree.models.from_parts import model_from_parts
from wrinklefree.models.io import load_checkpoint, load_source, save_checkpoint
from wrinklefree.models.plain import save_plain
from wrinklefree.models.tokenizer_files import load_tokenizer
from wrinklefree.quant.bitlinear import bit_linears


def compare_with_torch(
    engine: Engine, model: ModelParts, tables: Mapping[str, QuantizedTable], greedy_tokens: int = 16
) -> dict[str, Any]:
    """Return how the engine agrees with a torch model of the same parts, whose ternary layers compute as it does.

    Raises: VerificationError when it strays further than rounding noise moves the torch model.
    """
    built, _ = model_from_parts(model)
    agreement = compare_engine_with_torch(engine, built, greedy_tokens=greedy_tokens, tables=tables)
    if not agreement.passed:
        raise VerificationError(
            f"the engine does not do what torch does with the same parts: lowest cosine of logits "
            f"{agreement.logit_cosine_min:.5f} ({agreement.needed_cosine:.5f} is needed); nothing was written"
        )
    return agreement.to_json()


def import_checkpoint(
    source: Path,
    out: Path,
    show: Callable[[float, str], None] = lambda share, what: None,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """Write a ternary model as the checkpoint directory ``out``, to train on; return what was compared.

    The latents are codes times scales, the scales are fitted ones: the checkpoint's codes are the source's.

    Raises: InputError or FormatError for the source or an existing ``out``; VerificationError when the codes that the
    checkpoint ternarises to are not the source's.
    """
    show(0.0, "reading the source")
    parts = read_parts(source, tokenizer)
    model, info = model_from_parts(parts)
    show(0.4, "writing")
    save_checkpoint(model, _tokenizer(model, parts), out, info)
    show(0.7, "reading back")
    try:
        layers = _check_codes(out, parts)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return {"layers": layers, "parameters": parts.num_parameters}


def import_plain(
    source: Path,
    out: Path,
    show: Callable[[float, str], None] = lambda share, what: None,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """Write any GGUF file, or a ternary model of another format, as the plain Hugging Face directory ``out``.

    Raises: InputError or FormatError for the source or an existing ``out``.
    """
    show(0.0, "reading the source")
    if is_gguf(source):
        model, theirs = load_source(str(source))
        show(0.5, "writing")
        save_checkpoint(model, theirs, out, None)
    else:
        parts = read_parts(source, tokenizer)
        model, _ = model_from_parts(parts)
        show(0.5, "writing")
        save_plain(model, _tokenizer(model, parts), out)
    return {"parameters": model.num_parameters()}


def _check_codes(out: Path, parts: ModelParts) -> int:
    model, _, _ = load_checkpoint(out)
    layers = dict(bit_linears(model))
    wanted = [part for part in parts.parts if isinstance(part, TernaryPart)]
    for part in wanted:
        codes, _ = part.codes_and_scales()
        found, _ = layers[part.name].ternary()
        if not np.array_equal(found.numpy(), codes):
            raise VerificationError(f"{part.name}: the checkpoint's codes are not the source's; nothing was written")
    return len(wanted)


def _tokenizer(model: Any, parts: ModelParts) -> Any:
    tokenizer, generation = load_tokenizer(parts.files, parts.place)
    if generation is not None:
        model.generation_config = generation
    return tokenizer
