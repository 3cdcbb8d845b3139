"""The teacher of a recipe: built from its settings, asked ahead of a step, and what happens when it is gone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from wrinklefree.artifact.files import sha256
from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.models.forward import forward
from wrinklefree.models.io import load_checkpoint, load_source
from wrinklefree.objectives.manager import Term
from wrinklefree.teachers.base import PrefetchingTeacher, Teacher, TeacherError
from wrinklefree.teachers.cached import CachedTeacher, CacheKey
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.teachers.low_bit import reduce_weights
from wrinklefree.teachers.remote import RemoteServer, RemoteTeacher
from wrinklefree.train.audit import say
from wrinklefree.train.diffusion import match_student
from wrinklefree.train.guard import TrainingError
from wrinklefree.train.recipe import Recipe
from wrinklefree.train.session import Session, save
from wrinklefree.train.student import Student, check_teacher, is_converted


def _local(recipe: Recipe, student: Student, device: torch.device) -> Teacher:
    settings, name = recipe.teacher, _source(student)
    vocabulary = student.tokenizer.get_vocab()
    dtype = getattr(torch, settings.dtype or recipe.model.dtype)

    def load() -> nn.Module:
        say(f"Loading the teacher {name}.")
        model, tokenizer = load_checkpoint(name, dtype)[:2] if is_converted(name) else load_source(name, dtype)
        match_student(model, tokenizer, student.tokenizer, student.info)
        if tokenizer.get_vocab() != vocabulary:
            raise InputError(f"teacher {name}: its tokenizer is not the student's; token ids would not correspond")
        check_teacher(model, name, student)
        model.set_attn_implementation(settings.attention)
        if settings.weights != "full":
            reduce_weights(model, settings.weights)
        return model

    if recipe.task is not None and recipe.teacher_source is None:
        say(f"The teacher is {name} as it is: fine-tune it on the task first (training=teacher_finetune).")
    return LocalTeacher(load, forward, student.model, device, settings.top_k)


def _remote(recipe: Recipe, student: Student, device: torch.device) -> Teacher:
    settings = recipe.teacher
    assert settings.url and settings.model and settings.answers  # the recipe's own check
    server = RemoteServer(
        settings.url,
        settings.model,
        settings.answers,
        settings.key_variable,
        settings.timeout_seconds,
        settings.retries,
    )
    vocabulary = int(student.model.get_submodule("model.embed_tokens").num_embeddings)  # type: ignore[arg-type]
    return RemoteTeacher(server, vocabulary, settings.ahead, say)


def _nobody(recipe: Recipe, student: Student, device: torch.device) -> None:
    return None


# A new kind is one line here; a kind that has nobody to ask (None) answers from the cache alone.
TEACHERS: dict[str, Callable[[Recipe, Student, torch.device], Teacher | None]] = {
    "local": _local,
    "remote": _remote,
    "cached": _nobody,
}


def build_teacher(recipe: Recipe, student: Student, device: torch.device) -> Teacher:
    """Return the teacher of ``recipe``; nothing is loaded or asked yet.

    Raises: InputError when it cannot give what the objectives need, or a cache is of something else.
    """
    answers = recipe.teacher.answers
    if answers is not None:
        check_sparse(recipe.objectives, answers, recipe.teacher.kind)
    teacher = TEACHERS[recipe.teacher.kind](recipe, student, device)
    if recipe.teacher.cache_dir:
        assert answers is not None  # the recipe's own check
        key = CacheKey(_teacher_fingerprint(recipe, student), _data_fingerprint(recipe, student), answers)
        return CachedTeacher(Path(recipe.teacher.cache_dir), key, teacher, say=say)
    assert teacher is not None
    return teacher


def check_sparse(terms: Mapping[str, Term], top_k: int, kind: str) -> None:
    """Raise InputError for an objective that needs more than a teacher's ``top_k`` most probable tokens."""
    for name, term in terms.items():
        if not term.objective.needs.teacher:
            continue
        check = getattr(term.objective, "check_sparse", None)
        if term.objective.needs.states or check is None:
            raise InputError(
                f"objectives.{name}: needs the teacher's states or logits, but teacher.kind={kind} answers with its "
                f"{top_k} most probable tokens; use teacher.kind=local without top_k, or logits_kd"
            )
        check(top_k)


def ask_ahead(session: Session, batches: Sequence[TokenBatch], later: Callable[[], Sequence[TokenBatch]]) -> None:
    """Have the answers for this step before anything of it is done, and begin with those of the next.

    So a teacher that is gone stops the run between two steps, where the state is whole.

    Raises: TeacherError, in every process, when one of them gets no answer.
    """
    teacher = session.teacher
    if not isinstance(teacher, PrefetchingTeacher) or not teacher.prefetches:
        return
    problem: TeacherError | None = None
    try:
        teacher.prefetch([*batches, *later()])
        teacher.wait(batches)
    except TeacherError as error:
        problem = error
    failed = session.sum_over_processes(torch.tensor(float(problem is not None)))
    if problem is not None:
        raise problem
    if failed:
        raise TeacherError("the teacher does not answer another process of this run")


@contextmanager
def released(teacher: Teacher | None) -> Iterator[None]:
    """Release the teacher at the end, however it comes: a cache writes what waits, threads end."""
    try:
        yield
    finally:
        if teacher is not None:
            teacher.release()


def without_teacher(session: Session, saved: int, error: TeacherError) -> TrainingError:
    """Save the state of the last whole step and return the error that ends the run."""
    step = session.position.step
    if saved != step:
        save(session)
    where = f"saved in {session.config.state_dir}" if session.config.state_dir else "not saved: no state directory"
    return TrainingError(f"stopped after step {step}: {error}. The state is {where}")


def _source(student: Student) -> str:
    if not student.teacher:
        raise InputError("teacher.source: the checkpoint names no original model; set teacher.source")
    return student.teacher


def _teacher_fingerprint(recipe: Recipe, student: Student) -> str:
    """Of a server its model's name, of a local model its files; of a Hugging Face id its name."""
    settings = recipe.teacher
    if settings.model:
        return f"server model {settings.model}"
    source = _source(student)
    path = Path(source)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if path.is_dir() else []
    content = hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()[:16] if files else source
    return f"{content} {settings.dtype or recipe.model.dtype} {settings.weights} {settings.attention}"


def _data_fingerprint(recipe: Recipe, student: Student) -> str:
    values = asdict(recipe.data)
    kept = {"sources": values["sources"], "length": values["sequence_length"], "held_out": values["held_out_share"]}
    kept["task"] = None if recipe.task is None else asdict(recipe.task)
    tokens = sorted(student.tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(json.dumps([kept, tokens], sort_keys=True, default=str).encode()).hexdigest()[:16]
