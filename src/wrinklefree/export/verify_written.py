"""The verification that is part of every export: read back, run, compare; what fails never gets its name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.artifact.parts import ModelParts, stored_tables
from wrinklefree.artifact.tables import QuantizedTable
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.engine import Engine
from wrinklefree.errors import VerificationError
from wrinklefree.export.block_replay import BlockAgreement, compare_block_decoding
from wrinklefree.export.fit import FilePlan
from wrinklefree.export.foreign import ForeignAgreement, verify_with
from wrinklefree.export.formats import Format
from wrinklefree.export.source import Source
from wrinklefree.export.verify import (
    MIN_COSINE,
    PROMPTS,
    Agreement,
    CodesCheck,
    compare_engine_with_torch,
    lowest_cosine,
)
from wrinklefree.export.written import EngineAgreement, as_written, check_parts, compare_engines


@dataclass(frozen=True)
class Verified:
    """What the verification found; None for what was not compared.

    ``agreement``: the engine on the file against the torch model that holds what was written. ``blocks``: block
    decoding, likewise. ``engines``: the engine on the file against the engine on the unchanged source, both with
    tables in one precision, so that what differs is the conversion. ``foreign``: what ``--verify-with`` named.
    ``tensors``: how many were compared bit for bit, of a format that is not read back as a ternary model.
    """

    codes: CodesCheck | None = None
    agreement: Agreement | None = None
    blocks: BlockAgreement | None = None
    engines: EngineAgreement | None = None
    foreign: ForeignAgreement | None = None
    tensors: int | None = None


def verify_written(
    path: Path,
    entry: Format,
    plan: FilePlan,
    source: Source,
    threads: int | None,
    greedy_tokens: int,
    show: Callable[[float, str], None],
    program: str | None = None,
) -> Verified:
    """Return how what was written compares with its source.

    Raises: VerificationError when it is not what it should be or does not behave so.
    """
    show(0.4, "reading back")
    if entry.read is None:
        return _verify_floats(path, entry, plan, source, threads, greedy_tokens, program)
    found = (plan.read or entry.read)(path)
    codes = check_parts(plan.written, found)
    show(0.6, "comparing with the source")
    if plan.read is None:
        engine = Engine.load(path, threads=threads, kv_type="float32")
    else:  # the file lacks something that the source has: its tokenizer
        engine = Engine.from_parts(found, threads=threads, kv_type="float32")
    check_tokenizer(engine, source.parts)
    agreement = blocks = engines = foreign = None
    if source.model is not None:
        tables = stored_tables(found)
        with as_written(source.model, plan.fitted) if plan.conversions else nullcontext():
            agreement = _compare(engine, source.model, tables, greedy_tokens)
            if source.dlm is not None:
                show(0.8, "decoding blocks beside the source")
                blocks = _compare_blocks(engine, source.model, tables, greedy_tokens, source.dlm)
    if source.model is None or plan.lossy:
        show(0.9, "measuring what the conversion changed")
        unchanged = _engine_like(found, source.parts, threads)
        engines = compare_engines(unchanged, engine, greedy_tokens=greedy_tokens)
    if source.model is None and engines is not None and engines.logit_cosine_min < MIN_COSINE:
        check_logits(_engine_like(found, plan.fitted, threads), engine)
    if program is not None:
        show(0.95, f"asking {program}")
        foreign = verify_with(program, path, found, engine, greedy_tokens=greedy_tokens)
    return Verified(codes, agreement, blocks, engines, foreign)


def _engine_like(written: ModelParts, model: ModelParts, threads: int | None) -> Engine:
    """Return an engine of ``model`` with its tables in the precision that the engine on what was written has."""
    info = replace(model.info, embedding=written.info.embedding)
    return Engine.from_parts(replace(model, info=info), threads=threads, kv_type="float32")


def _verify_floats(
    path: Path, entry: Format, plan: FilePlan, source: Source, threads: int | None, tokens: int, program: str | None
) -> Verified:
    """Verify a directory that is not read back as a ternary model: its bytes, and ``program`` against our engine."""
    assert entry.check is not None
    equal, foreign = entry.check(path, plan), None
    if program is not None:
        engine = Engine.from_parts(source.parts, threads=threads, kv_type="float32")
        foreign = verify_with(program, path, plan.written, engine, greedy_tokens=tokens)
    return Verified(foreign=foreign, tensors=equal)


def check_logits(expected: Engine, found: Engine) -> None:
    """Raise VerificationError when an engine does not compute what that of the planned model computes.

    Both have the same numbers, so that only sums over padding may be in another order.
    """
    for prompt in PROMPTS:
        tokens = expected.tokenizer.encode(prompt)[: expected.context]
        ours, theirs = (engine.logits(tokens) for engine in (expected, found))
        cosine = lowest_cosine(np.nan_to_num(ours, neginf=0.0), np.nan_to_num(theirs, neginf=0.0))
        if not cosine >= MIN_COSINE:
            raise VerificationError(
                f"the engine does not do on the file what it does on the source: after {prompt!r} the lowest cosine of "
                f"logits is {cosine:.5f} ({MIN_COSINE} is needed); nothing was written"
            )


def check_tokenizer(engine: Engine, source: ModelParts) -> None:
    """Raise VerificationError when the file's tokenizer splits the prompts in another way than the source's."""
    with tempfile.TemporaryDirectory() as directory:
        for name, data in source.files.items():
            (Path(directory) / name).write_bytes(data)
        ours = Tokenizer.load(directory)
        for prompt in PROMPTS:
            if engine.tokenizer.encode(prompt) != ours.encode(prompt):
                raise VerificationError(f"the file's tokenizer splits {prompt!r} in another way than the source's")


def _compare(
    engine: Engine, model: torch.nn.Module, tables: Mapping[str, QuantizedTable], greedy_tokens: int
) -> Agreement:
    agreement = compare_engine_with_torch(engine, model, greedy_tokens=greedy_tokens, tables=tables)
    if not agreement.passed:
        unexplained = [d for d in agreement.differences if not d.explained]
        raise VerificationError(
            f"the engine does not behave like the source: lowest cosine of logits {agreement.logit_cosine_min:.5f} "
            f"({agreement.needed_cosine:.5f} is needed), greedy tokens equal {agreement.greedy_tokens_equal} of "
            f"{agreement.greedy_tokens}, differences without a tie: {len(unexplained)}; nothing was written"
        )
    return agreement


def _compare_blocks(
    engine: Engine,
    model: torch.nn.Module,
    tables: Mapping[str, QuantizedTable],
    num_tokens: int,
    dlm: Mapping[str, Any],
) -> BlockAgreement | None:
    """Return how a text decoded by blocks agrees; None for a model that the engine does not decode so."""
    marker = DiffusionMarker.of(dlm, "config.json")
    if marker.block_size is None or engine.context < 2 * marker.block_size:
        return None
    room = engine.context // marker.block_size * marker.block_size
    prompt = engine.tokenizer.encode(PROMPTS[0])[: room // 2]
    blocks = compare_block_decoding(engine, model, marker, prompt, num_tokens, tables=tables)
    if not blocks.passed:
        unexplained = next((d.what for d in blocks.differences if not d.explained), "none")
        raise VerificationError(
            f"the engine does not decode blocks like the source: probabilities differ by "
            f"{blocks.confidence_difference:.2g} (rounding noise makes {blocks.confidence_noise:.2g}), first "
            f"unexplained difference: {unexplained}; nothing was written"
        )
    return blocks
