"""Labelled examples instead of running text: a text with a class, or a prompt with its completion. One in each row.

Tokens. A classified text is encoded as it is (two texts joined by ``join``), BOS where the tokenizer puts one and no
end token, so that its last token is text; padding comes on the right. A prompt and its completion are encoded on
their own, as at inference, and the end token follows; only the completion and the end token are predicted.

Truncation to T tokens, counted and reported: a text loses its end; of two texts, the longer one loses its end until
both fit. A completion longer than T / 2 loses its end (and then has no end token); the prompt then loses its middle,
because instructions stand at either end (as in LongBench, arXiv 2308.14508).

The order is a permutation by (seed, epoch), a function of the position alone, so resuming is exact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wrinklefree.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, TokenBatch
from wrinklefree.data.document import SourceConfig
from wrinklefree.data.permutation import key, permute
from wrinklefree.data.records import Record, in_split, read_records
from wrinklefree.data.tokens import TextEncoder
from wrinklefree.errors import InputError, unknown_name

_ORDER, _SPLIT = 11, 12  # purposes of the permutations

Problem = Literal["single_label", "multi_label", "regression"]


@dataclass(frozen=True)
class TaskConfig:
    """What an example is, by the fields of its record.

    ``kind`` classification reads ``text``, optionally ``text_pair``, and ``label``; completion reads ``prompt`` and
    ``completion``. ``problem``: one class, any number of classes (a list of names), or a number to predict.
    ``labels``: the classes' names in the order of their numbers; empty takes those found, sorted. A record may then
    give the number instead of the name, as the data sets of the hub do.
    ``held_out``: a file of held-out examples. ``held_out_split``: the split of the same source that has them. Neither
    holds out ``data.held_out_share`` of the examples.
    """

    kind: Literal["classification", "completion"]
    problem: Problem = "single_label"
    text: str = "text"
    text_pair: str | None = None
    join: str = "\n"
    label: str = "label"
    labels: tuple[str, ...] = ()
    prompt: str = "prompt"
    completion: str = "completion"
    held_out: str | None = None
    held_out_split: str | None = None

    def __post_init__(self) -> None:
        if self.held_out is not None and self.held_out_split is not None:
            raise InputError(
                "task.held_out, task.held_out_split: the held-out examples come from one of them; give one"
            )
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            raise InputError(f"task.labels: found {list(self.labels)}, two or more different names are needed")
        if self.labels and (self.kind == "completion" or self.problem == "regression"):
            raise InputError("task.labels: nothing would read it, because there are no classes; remove it")


@dataclass(frozen=True)
class ClassBatch(TokenBatch):
    """Rows with what is to be predicted of each: int64 ``[B]`` the class, float32 ``[B, C]`` which of C classes
    apply (0 or 1), or float32 ``[B]`` a number. No token of it is predicted.
    """

    classes: Tensor | None = None


@dataclass(frozen=True)
class Examples:
    """Encoded examples. ``scored``: from which token on each is predicted (its length: nothing is).

    ``classes`` as in `ClassBatch`, over all examples, or None. ``truncated``: how many lost tokens.
    """

    ids: tuple[NDArray[np.int32], ...]
    scored: tuple[int, ...]
    classes: Tensor | None
    length: int
    pad_id: int
    truncated: int

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> TokenBatch:
        """Return the examples ``indices`` as rows of ``length`` tokens, padded on the right."""
        size = (len(indices), self.length)
        ids, labels = torch.full(size, self.pad_id), torch.full(size, IGNORE_INDEX)
        places, documents = torch.zeros(size, dtype=torch.int64), torch.full(size, PADDING_DOCUMENT, dtype=torch.int32)
        for row, index in enumerate(indices):
            tokens = torch.from_numpy(self.ids[index].astype(np.int64))
            ids[row, : len(tokens)], places[row, : len(tokens)] = tokens, torch.arange(len(tokens))
            documents[row, : len(tokens)] = 0
            start = self.scored[index]
            labels[row, start : len(tokens)] = tokens[start:]
        if self.classes is None:
            return TokenBatch(ids, labels, places, documents)
        return ClassBatch(ids, labels, places, documents, classes=self.classes[list(indices)])

    def fingerprint(self) -> str:
        """Return a hash of every token, boundary and class."""
        digest = hashlib.sha256(repr((self.length, self.pad_id, self.scored)).encode())
        for tokens in self.ids:
            digest.update(tokens.tobytes() + b"|")
        if self.classes is not None:
            digest.update(self.classes.numpy().tobytes())
        return digest.hexdigest()


class SupervisedStream:
    """Examples without end, in a new order every epoch; the position is all there is to resume."""

    def __init__(self, examples: Examples, seed: int = 0) -> None:
        self.examples = examples
        self.seed = seed
        self.length = examples.length

    def batch(self, first_sequence: int, size: int) -> TokenBatch:
        """Return examples ``first_sequence`` to ``first_sequence + size`` of the stream."""
        return self.examples.batch([self.locate(k) for k in range(first_sequence, first_sequence + size)])

    def locate(self, position: int) -> int:
        """Return which example stands at ``position`` >= 0."""
        epoch, place = divmod(position, len(self.examples))
        order = key(self.seed, _ORDER, epoch)
        return int(permute(np.array([place]), len(self.examples), order)[0])

    def set_weights(self, weights: Sequence[float], position: int) -> None:
        """Raise InputError: examples are one source."""
        raise InputError("curriculum: its phases name data mixtures, but a task has a single source of examples")

    def state_dict(self) -> dict[str, Any]:
        """Return what tells that a resumed run has the same examples."""
        return {"seed": self.seed, "examples": self.examples.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise InputError when the checkpoint was made with other examples."""
        if state != self.state_dict():
            raise InputError(
                "data: the state was made with other examples, or another order; resume with the file it was started "
                "with, or start a new run"
            )


@dataclass(frozen=True)
class SupervisedData:
    """The stream to train on, the held-out examples, and the classes' names (empty for completions)."""

    stream: SupervisedStream
    held_out: Examples
    labels: tuple[str, ...]
    problem: Problem


def build_supervised(
    task: TaskConfig, source: SourceConfig, encoder: TextEncoder, length: int, seed: int, held_out_share: float,
    pad_id: int,
) -> SupervisedData:  # fmt: skip
    """Return the examples of ``source`` (jsonl or huggingface), split and encoded to rows of ``length`` tokens.

    Training examples whose texts are also held out are dropped.

    Raises: InputError naming file and line for a missing field, a wrong type or an unknown label.
    """
    if length < 4:
        raise InputError(f"data.sequence_length: found {length}, an example needs at least 4 tokens")
    records = [checked(record, task) for record in read_records(source)]
    apart = held_out_source(task, source)
    if apart is not None:
        held = [checked(record, task) for record in read_records(apart)]
    else:
        records, held = _split(records, held_out_share)
    kept = {texts_of(record, task) for record in held}
    records = [record for record in records if texts_of(record, task) not in kept]
    if not records:
        raise InputError(f"{source.path}: no example is left to train on; every one is held out")
    labels = _label_names(records + held, task)
    train, rest = (_encode(part, task, labels, encoder, length, pad_id) for part in (records, held))
    return SupervisedData(SupervisedStream(train, seed), rest, labels, task.problem)


def held_out_source(task: TaskConfig, source: SourceConfig) -> SourceConfig | None:
    """Return where the held-out examples of a task stand by themselves, None when they are a share of ``source``.

    Raises: InputError when a file is to have splits.
    """
    if task.held_out is not None:
        return SourceConfig(kind="jsonl", path=task.held_out)
    return None if task.held_out_split is None else in_split(source, task.held_out_split)


def _split(records: list[Record], share: float) -> tuple[list[Record], list[Record]]:
    if not 0.0 <= share < 1.0:
        raise InputError(f"data.held_out_share: found {share}, allowed is 0 to below 1")
    order = permute(np.arange(len(records)), len(records), key(0, _SPLIT))
    held = {int(index) for index in np.argsort(order)[: round(share * len(records))]}
    train = [record for index, record in enumerate(records) if index not in held]
    return train, [records[index] for index in sorted(held)]


def checked(record: Record, task: TaskConfig) -> Record:
    """Return a record that has what the task reads. Raises: InputError naming its place and the field."""
    for name in _text_fields(task):
        if name not in record.values:
            raise unknown_name(f"{record.place}: field", name, map(str, record.values))
        value = record.values[name]
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{record.place}: field {name!r}: found {value!r}, a text is needed")
    if task.kind == "classification" and task.label not in record.values:
        raise unknown_name(f"{record.place}: field", task.label, map(str, record.values))
    return record


def _text_fields(task: TaskConfig) -> tuple[str, ...]:
    if task.kind == "completion":
        return task.prompt, task.completion
    return (task.text,) if task.text_pair is None else (task.text, task.text_pair)


def texts_of(record: Record, task: TaskConfig) -> tuple[str, ...]:
    """Return the one or two texts of a record that `checked` returned."""
    return tuple(record.values[name] for name in _text_fields(task))


def _label_names(records: list[Record], task: TaskConfig) -> tuple[str, ...]:
    """The classes' names; those found are sorted as numbers when all are, else as text."""
    if task.kind == "completion":
        return ()
    if task.problem == "regression":
        return ("value",)
    if task.labels:
        return task.labels
    found = {name for record in records for name in _names(record, task)}
    if len(found) < 2:
        raise InputError(f"task.label: found the classes {sorted(found)}, two or more are needed")
    numbers = all(name.lstrip("-").isdigit() for name in found)
    return tuple(sorted(found, key=(lambda name: int(name)) if numbers else str))


def _names(record: Record, task: TaskConfig) -> list[str]:
    """The class names a record gives; numbers are names too."""
    value = record.values[task.label]
    several = value if task.problem == "multi_label" else [value]
    if not isinstance(several, list) or not all(isinstance(x, str | int) for x in several):
        needed = "a list of names" if task.problem == "multi_label" else "a name or a whole number"
        raise InputError(f"{record.place}: field {task.label!r}: found {json.dumps(value)[:60]}, {needed} is needed")
    return [str(x) for x in several]


def classes_of(records: Sequence[Record], task: TaskConfig, labels: tuple[str, ...]) -> Tensor:
    """Return what is to be predicted of each record, as in `ClassBatch`; ``labels`` are the classes' names.

    Raises: InputError naming the place of an unknown or malformed label.
    """
    if task.problem == "regression":
        values = [record.values[task.label] for record in records]
        for record, value in zip(records, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise InputError(f"{record.place}: field {task.label!r}: found {value!r}, a number is needed")
        return torch.tensor(values, dtype=torch.float32)
    numbers = {name: number for number, name in enumerate(labels)}
    rows = torch.zeros(len(records), len(labels))
    for row, record in enumerate(records):
        for name in _names(record, task):
            if name not in numbers and not (name.isdecimal() and int(name) < len(labels)):
                raise unknown_name(f"{record.place}: label", name, labels)
            rows[row, numbers[name] if name in numbers else int(name)] = 1.0
    return rows if task.problem == "multi_label" else rows.argmax(dim=1)


def _encode(
    records: list[Record], task: TaskConfig, labels: tuple[str, ...], encoder: TextEncoder, length: int, pad_id: int
) -> Examples:
    encode_one = _completion if task.kind == "completion" else classified
    pieces = [encode_one(texts_of(record, task), task, encoder, length) for record in records]
    return Examples(
        ids=tuple(np.array(ids, np.int32) for ids, _, _ in pieces),
        scored=tuple(scored for _, scored, _ in pieces),
        classes=classes_of(records, task, labels) if task.kind == "classification" else None,
        length=length,
        pad_id=pad_id,
        truncated=sum(cut for _, _, cut in pieces),
    )


def classified(
    texts: tuple[str, ...], task: TaskConfig, encoder: TextEncoder, length: int
) -> tuple[list[int], int, bool]:
    """Return at most ``length`` ids to classify, from where they are predicted (nowhere), and whether some were cut."""
    ids = _open(encoder.encode(task.join.join(texts)), encoder)
    if len(ids) <= length:
        return ids, len(ids), False
    if len(texts) == 1:
        return ids[:length], length, True
    first = _open(encoder.encode(texts[0]), encoder)
    second = _open(_bare(task.join + texts[1], encoder), encoder)
    while len(first) + len(second) > length:
        (first if len(first) >= len(second) else second).pop()
    return first + second, len(first) + len(second), True


def _completion(
    texts: tuple[str, ...], task: TaskConfig, encoder: TextEncoder, length: int
) -> tuple[list[int], int, bool]:
    prompt = _open(encoder.encode(texts[0]), encoder)
    completion = [*_open(_bare(texts[1], encoder), encoder), encoder.eos_id]
    cut = len(prompt) + len(completion) > length
    if cut:
        completion = completion[: max(length - len(prompt), length // 2)]
        room = length - len(completion)
        if len(prompt) > room:
            prompt = prompt[: room - room // 2] + prompt[len(prompt) - room // 2 :]
    return prompt + completion, len(prompt), cut


def _open(ids: list[int], encoder: TextEncoder) -> list[int]:
    """The ids without an end token that the tokenizer may have put there."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == encoder.eos_id else ids


def _bare(text: str, encoder: TextEncoder) -> list[int]:
    """The ids of a text that goes on: without the BOS its tokenizer opens every text with."""
    opening = _open(encoder.encode(""), encoder) if encoder.encode("") != [encoder.eos_id] else []
    ids = encoder.encode(text)
    return ids[len(opening) :] if ids[: len(opening)] == opening else ids
