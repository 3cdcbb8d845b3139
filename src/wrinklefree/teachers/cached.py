"""Top-K answers kept on disk: the first epoch fills them, later ones (and other runs) read them.

    DIRECTORY/<key>/cache.json                 teacher, data, K; what the key is the hash of
                    shard-<sha256>.safetensors keys [R, 32] uint8, ids [R, T, K] int32, log_probs [R, T, K] float32

A row is found by what it is, the SHA-256 of its tokens and document numbers, so order, batch size, number of processes
and interruptions do not matter. Values are kept as they came, float32, so training from the cache is training from the
teacher. A shard is named after its content and is checked against its name before it is first read from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wrinklefree.artifact.files import json_bytes, read_json, sha256, write_bytes
from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import FormatError, InputError
from wrinklefree.teachers.base import PrefetchingTeacher, Teacher, TopKOutput, refuse_states

FORMAT_VERSION = 1
_HEADER, _SHARD = "cache.json", "shard-"


@dataclass(frozen=True)
class CacheKey:
    """What answers depend on: which teacher, which data (tokenizer, sources, sequence length), how many tokens."""

    teacher: str
    data: str
    top_k: int

    def to_json(self) -> dict[str, Any]:
        """Return the header of the cache."""
        values = {"teacher": self.teacher, "data": self.data, "top_k": self.top_k}
        return {"format": "teacher-cache", "format_version": FORMAT_VERSION, **values}

    @property
    def directory(self) -> str:
        """Return the name of the directory of these answers."""
        return hashlib.sha256(json_bytes(self.to_json())).hexdigest()[:16]


class CachedTeacher:
    """Answers from ``directory``; what is not there is asked of ``inner`` and kept, or refused when there is none.

    ``shard_rows``: sequences that wait in memory until they are written; `flush` writes the rest.
    """

    def __init__(
        self,
        directory: Path,
        key: CacheKey,
        inner: Teacher | None = None,
        shard_rows: int = 64,
        say: Callable[[str], None] = print,
    ) -> None:
        self.key, self.inner, self.shard_rows = key, inner, shard_rows
        self.path = directory / key.directory
        self.hits = self.misses = 0
        self._waiting: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._places: dict[bytes, tuple[Path, int]] = {}
        self._checked: set[Path] = set()
        self._open_directory(directory)
        if self._places:
            say(f"Teacher cache: {len(self._places)} sequences in {self.path}.")

    @property
    def loaded(self) -> bool:
        return self.inner is not None and self.inner.loaded

    @torch.no_grad()
    def forward(self, batch: TokenBatch, want: frozenset[str]) -> TopKOutput:
        refuse_states("cached", want)
        device = batch.input_ids.device
        keys = row_keys(batch)
        missing = self._missing(keys)
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            self._ask(batch, keys, missing)
        rows = [self._waiting[key] if key in self._waiting else self._read(*self._places[key]) for key in keys]
        if len(self._waiting) >= self.shard_rows:
            self.flush()
        ids, log_probs = (torch.stack(part).to(device) for part in zip(*rows, strict=True))
        return TopKOutput(ids, log_probs)

    @property
    def prefetches(self) -> bool:
        return isinstance(self.inner, PrefetchingTeacher) and self.inner.prefetches

    def prefetch(self, batches: Sequence[TokenBatch]) -> None:
        if isinstance(self.inner, PrefetchingTeacher):
            self.inner.prefetch([batch for batch in batches if self._missing(row_keys(batch))])

    def wait(self, batches: Sequence[TokenBatch]) -> None:
        if isinstance(self.inner, PrefetchingTeacher):
            self.inner.wait([batch for batch in batches if self._missing(row_keys(batch))])

    def release(self) -> None:
        self.flush()
        if self.inner is not None:
            self.inner.release()

    def flush(self) -> None:
        """Write the sequences that wait, as one shard, whole or not at all."""
        if not self._waiting:
            return
        keys = list(self._waiting)
        ids, log_probs = (torch.stack(part).contiguous() for part in zip(*self._waiting.values(), strict=True))
        names = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), 32)
        data = save({"keys": names, "ids": ids, "log_probs": log_probs})
        path = self.path / f"{_SHARD}{hashlib.sha256(data).hexdigest()}.safetensors"
        write_bytes(path, data)
        self._checked.add(path)
        self._places |= {key: (path, row) for row, key in enumerate(keys)}
        self._waiting.clear()

    def _missing(self, keys: list[bytes]) -> list[int]:
        return [i for i, key in enumerate(keys) if key not in self._places and key not in self._waiting]

    def _ask(self, batch: TokenBatch, keys: list[bytes], missing: list[int]) -> None:
        if self.inner is None:
            raise InputError(
                f"{self.path}: does not hold {len(missing)} of the {len(keys)} sequences of this batch, and "
                "teacher.kind=cached asks nobody; fill it with the live teacher (same data, teacher.cache_dir) first"
            )
        # The whole batch, so that the answer is the one a run without a cache would get, to the last bit.
        answer = self.inner.forward(batch, frozenset())
        if not isinstance(answer, TopKOutput) or answer.top_k > self.key.top_k:
            raise InputError("teacher.cache_dir: only top-K answers can be kept; set teacher.top_k")
        for i in missing:
            self._waiting[keys[i]] = (answer.ids[i].int().cpu().clone(), answer.log_probs[i].float().cpu().clone())

    def _open_directory(self, directory: Path) -> None:
        header = self.path / _HEADER
        if not header.is_file():
            if self.inner is None:
                raise InputError(f"{directory}: holds no answers for {_line(self.key.to_json())}; {_others(directory)}")
            self.path.mkdir(parents=True, exist_ok=True)
            write_bytes(header, json_bytes(self.key.to_json()))
        elif read_json(header) != self.key.to_json():
            found = _line(read_json(header))
            raise FormatError(f"{header}: is of {found}, needed is {_line(self.key.to_json())}; remove {self.path}")
        for path in sorted(self.path.glob(f"{_SHARD}*.safetensors")):
            keys = _tensor(path, "keys")
            self._places |= {bytes(key.tolist()): (path, row) for row, key in enumerate(keys)}

    def _read(self, path: Path, row: int) -> tuple[Tensor, Tensor]:
        if path not in self._checked:
            if not path.is_file() or path.name != f"{_SHARD}{sha256(path)}.safetensors":
                raise _damaged(path)
            self._checked.add(path)
        return _tensor(path, "ids", row), _tensor(path, "log_probs", row)


def row_keys(batch: TokenBatch) -> list[bytes]:
    """Return the SHA-256 of each sequence's tokens and document numbers."""
    both = torch.stack([batch.input_ids, batch.document_ids.long()], dim=1).cpu().contiguous()
    return [hashlib.sha256(row.numpy().tobytes()).digest() for row in both]


def _tensor(path: Path, name: str, row: int | None = None) -> Tensor:
    try:
        with safe_open(path, framework="pt") as shard:
            tensor: Tensor = shard.get_tensor(name) if row is None else shard.get_slice(name)[row]
    except (SafetensorError, OSError) as error:
        raise _damaged(path) from error
    return tensor


def _damaged(path: Path) -> FormatError:
    return FormatError(f"{path}: is damaged (its content is not what its name says); remove it, it is filled again")


def _others(directory: Path) -> str:
    headers = [read_json(path) for path in sorted(directory.glob(f"*/{_HEADER}"))]
    return f"found are answers for {'; '.join(map(_line, headers))}" if headers else "it holds no answers at all"


def _line(header: Mapping[str, Any]) -> str:
    return f"teacher {header.get('teacher')}, data {header.get('data')}, top_k {header.get('top_k')}"
