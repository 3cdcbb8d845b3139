"""What a stage trains: the model as its recipe wants it, its tokenizer, its data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from wrinklefree.artifact.files import read_json
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.data.build import TrainingData, build_data
from wrinklefree.data.supervised import SupervisedData, build_supervised
from wrinklefree.data.tokens import TextEncoder
from wrinklefree.errors import InputError
from wrinklefree.models.classification import as_classifier, check_labels
from wrinklefree.models.convert import convert_model
from wrinklefree.models.families import default_subln
from wrinklefree.models.gguf import refuse_ternary
from wrinklefree.models.io import CheckpointInfo, load_checkpoint, load_source
from wrinklefree.models.low_rank import prepare_low_rank
from wrinklefree.models.subln import SublnInit
from wrinklefree.optim.build import freeze_still
from wrinklefree.quant.settling import settle
from wrinklefree.train.audit import say
from wrinklefree.train.diffusion import banned_token, diffusing
from wrinklefree.train.recipe import Recipe

_SUBLN_SEQUENCES = 16  # that measure the gains of subln=identity


@dataclass(frozen=True)
class Student:
    """``info`` is None for a model that stays in full precision; ``teacher`` names the model to learn from."""

    model: nn.Module
    tokenizer: Any
    info: CheckpointInfo | None
    teacher: str | None
    data: TrainingData | SupervisedData


def build_student(recipe: Recipe) -> Student:
    """Load a converted checkpoint, or load and convert an original model; read the data with its tokenizer.

    A classification task gives the model its head; ``model.convert=false`` leaves it in full precision.

    Raises: InputError when the recipe, its model and its data do not fit together.
    """
    student = _built(recipe)
    freeze_still(student.model, recipe.optimizer)
    if recipe.model.margin > 0.0 and settle(student.model, recipe.model.margin) == 0:
        raise InputError(
            f"model.margin: no layer of {recipe.model.source} has scales of its own, and latents that are moved would "
            "change the others; leave it out, or calibrate the model (wf convert)"
        )
    return student


def _built(recipe: Recipe) -> Student:
    source = recipe.model.source
    if not source:
        raise InputError("model.source: none given; name a model (model=NAME or model=PATH)")
    dtype = getattr(torch, recipe.model.dtype)
    info: CheckpointInfo | None
    if is_converted(source):
        _refuse_conversion(recipe, source)
        model, tokenizer, info = load_checkpoint(source, dtype)
        info = diffusing(recipe, model, tokenizer, info)
        data = _data(recipe, tokenizer, info)
        prepare_low_rank(model, recipe.low_rank, _rows(data), original=False, say=say)
        return Student(_for_task(model, recipe, data), tokenizer, info, recipe.teacher_source or info.teacher, data)
    if recipe.model.convert:
        refuse_ternary(source)
    model, tokenizer = load_source(source, dtype)
    if not recipe.model.convert:
        data = _data(recipe, tokenizer, None)
        return Student(_for_task(model, recipe, data), tokenizer, None, recipe.teacher_source, data)
    subln = cast(SublnInit, recipe.model.subln or default_subln(model.config))
    spec, exclude = recipe.model.spec, recipe.model.exclude
    info = CheckpointInfo(stage="convert", spec=spec, subln=subln, teacher=source, exclude=exclude)
    info = diffusing(recipe, model, tokenizer, info)
    data = _data(recipe, tokenizer, info)
    model = _for_task(model, recipe, data)
    convert_model(model, spec, subln, _sequences(data) if subln == "identity" else None, exclude=exclude)
    prepare_low_rank(model, recipe.low_rank, _rows(data), original=True, say=say)
    return Student(model, tokenizer, info, recipe.teacher_source or source, data)


def is_converted(source: str) -> bool:
    """Return whether ``source`` is a directory with a converted model."""
    path = Path(source) / "config.json"
    return path.is_file() and "wrinklefree" in read_json(path)


def check_teacher(teacher: nn.Module, name: str, student: Student) -> None:
    """Raise InputError for a teacher that does not do the student's task."""
    if isinstance(student.data, SupervisedData) and student.data.labels:
        check_labels(teacher, student.data.labels, f"teacher {name}")


def monitored(recipe: Recipe) -> tuple[str, ...]:
    """Return the objectives that are measured whatever their weight."""
    classifies = recipe.task is not None and recipe.task.kind == "classification"
    return ("classification",) if classifies else ("next_token",)


def _refuse_conversion(recipe: Recipe, source: str) -> None:
    for name in ("granularity", "group_size", "quantizer", "subln", "exclude"):
        if getattr(recipe.model, name):
            raise InputError(f"model.{name}: nothing would read it, because {source} is converted already")
    if not recipe.model.convert:
        raise InputError(f"model.convert: {source} is converted already; give the original model")


def _data(recipe: Recipe, tokenizer: Any, info: CheckpointInfo | None) -> TrainingData | SupervisedData:
    encoder = text_encoder(tokenizer, banned_token(info))
    if recipe.task is None:
        training = build_data(recipe.data_config, encoder)
        for name, part in zip(recipe.data.sources, training.splits, strict=True):
            say(f"Data {name}: {part}.")
        return training
    if len(recipe.data.sources) != 1:
        raise InputError(f"data.sources: found {list(recipe.data.sources)}, a task takes its examples from one")
    (source,) = recipe.data.sources.values()
    data = build_supervised(
        recipe.task, source, encoder, recipe.data.sequence_length, recipe.seed, recipe.data.held_out_share,
        _pad_id(tokenizer, encoder),
    )  # fmt: skip
    train = data.stream.examples
    names = f"; classes {', '.join(data.labels)}" if data.labels else ""
    say(
        f"{len(train)} examples to train on and {len(data.held_out)} held out; "
        f"{train.truncated + data.held_out.truncated} were cut to {train.length} tokens{names}."
    )
    return data


def _pad_id(tokenizer: Any, encoder: TextEncoder) -> int:
    return encoder.eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def _for_task(model: Any, recipe: Recipe, data: TrainingData | SupervisedData) -> Any:
    if recipe.task is None or recipe.task.kind != "classification":
        return model
    assert isinstance(data, SupervisedData)
    return as_classifier(model, data.labels, data.problem, data.stream.examples.pad_id)


def _sequences(data: TrainingData | SupervisedData) -> Tensor | list[Tensor]:
    """Token ids that measure the gains of SubLN, without padding."""
    batch = data.stream.batch(0, _SUBLN_SEQUENCES)
    if isinstance(data, TrainingData):
        return batch.input_ids
    return [row[: int((kept >= 0).sum())] for row, kept in zip(batch.input_ids, batch.document_ids, strict=True)]


def _rows(data: TrainingData | SupervisedData) -> Callable[[int], Tensor]:
    return lambda count: data.stream.batch(0, count).input_ids


def text_encoder(tokenizer: Any, banned: int | None = None) -> TextEncoder:
    """Our own tokenizer, read from the files of a Hugging Face one: BOS exactly once, and the engine's ids.

    ``banned``: the MASK of a diffusion model; a text that spells it out does not become one.
    """
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        encoder = TextEncoder.of(Tokenizer.load(Path(directory)))
    if banned is None:
        return encoder
    return replace(encoder, encode=lambda text: [token for token in encoder.encode(text) if token != banned])
