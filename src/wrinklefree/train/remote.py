"""Copies of the training state at a remote place, any URL that fsspec knows: s3://, gs://, hf://, file://, memory://.

    URL/RUN/step-00000010/state.json, tensors..., manifest.json   the manifest last: without it a copy does not count
    URL/RUN/checkpoint/   the finished checkpoint with its figures and the recipe; config.json last

Machines that do not share a file system each copy their own processes' files, and take all of them to resume.

``mode=optional``: what fails is said, counted and tried again at the next save; training continues.
``mode=required``: it ends the run, at the start where the place cannot be written, later when a copy fails.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from wrinklefree.errors import InputError, TrainingError
from wrinklefree.train.audit import note, say
from wrinklefree.train.checkpoint import MANIFEST, PREFIX, states
from wrinklefree.train.parallel import Group

T = TypeVar("T")


@dataclass(frozen=True)
class SyncRecipe:
    """``url`` None keeps the states here alone; ``keep_last`` newest copies stay; see `train.remote`.

    ``timeout_seconds``: how long one copy may take.
    """

    url: str | None = None
    mode: Literal["optional", "required"] = "optional"
    keep_last: int = 2
    timeout_seconds: float = 1800.0


class Remote:
    """The copies of one run. ``name`` is its place below the URL; runs of other recipes have another."""

    def __init__(self, recipe: SyncRecipe, name: str) -> None:
        assert recipe.url is not None
        self._recipe = recipe
        self.place = f"{recipe.url.rstrip('/')}/{name}"
        self._fs: Any = None
        self._root = ""
        self._hangs = False

    def check(self) -> None:
        """Write and remove a small file, before training.

        Raises: InputError in mode required, when the place cannot be written.
        """

        def probe() -> None:
            self._connect()
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/.probe", b"wrinklefree")
            self._fs.rm_file(f"{self._root}/.probe")

        problem = self._attempt(probe)[1]
        if problem is None:
            return
        kind = "credentials_missing" if _is_credentials(problem) else "sync_failed"
        reason = _reason(problem)
        if self._recipe.mode == "required":
            message = (
                f"sync.url={self.place}: cannot be written ({reason}), but sync.mode=required; nothing was trained"
            )
            note(kind, message, printed=True)
            raise InputError(message) from problem
        note(
            kind,
            f"REMOTE COPIES FAIL: {self.place} cannot be written ({reason}). Training continues; states are kept on "
            "this machine, and every save tries again.",
        )

    def push(self, state: Path, group: Group | None = None) -> None:
        """Copy one state, and remove what is older than the newest ``keep_last``.

        Every process of a ``group`` of separate machines must call it.

        Raises: TrainingError in mode required, when that fails.
        """
        group = group or Group()
        # The first takes back what an earlier attempt left, all machines copy, and only then the manifest follows.
        steps = (
            (group.rank == 0, lambda: self._withdraw(state)),
            (group.keeps_files, lambda: self._copy(state)),
            (group.rank == 0, lambda: self._publish(state)),
        )
        for mine, step in steps:
            done = not mine or self._told(state, step)
            if not (group.agree(done) if group.separate else done):
                return

    def keep(self, out: Path) -> None:
        """Copy the finished run: the files of its checkpoint, its recipe and its figures, not its states.

        Raises: TrainingError in mode required, when that fails.
        """
        self._told(out, lambda: self._copy_finished(out))

    def _told(self, state: Path, action: Callable[[], None]) -> bool:
        problem = self._attempt(action)[1]
        if problem is None:
            return True
        if self._recipe.mode == "required":
            message = (
                f"{state.name} could not be copied to {self.place} ({_reason(problem)}), and sync.mode=required, so "
                f"training stops; the state in {state} is intact and the same command resumes from it"
            )
            note("sync_failed", message, printed=True)
            raise TrainingError(message) from problem
        note(
            "sync_failed",
            f"REMOTE COPY FAILED: {state.name} is not at {self.place} ({_reason(problem)}). Training continues; the "
            f"state is in {state}.",
        )
        return False

    def pull(self, directory: Path, separate: bool = False) -> bool:
        """Fetch the newest copy when ``directory`` holds no state; return whether it did.

        ``separate``: also when it holds only this machine's part of that copy, or another one.

        Raises: InputError in mode required, when the place cannot be read.
        """
        if states(directory) and not separate:
            return False
        found, problem = self._attempt(lambda: self._fetch(directory))
        if problem is not None and self._recipe.mode == "required":
            raise InputError(f"{self.place}: cannot be read ({_reason(problem)}), and sync.mode=required") from problem
        if problem is not None:
            note("sync_failed", f"{self.place} cannot be read ({_reason(problem)}). Training continues from the start.")
        if found:
            say(f"Took {found} from {self.place}.")
        return bool(found)

    def _connect(self) -> None:
        if self._fs is None:
            from fsspec.core import url_to_fs

            self._fs, self._root = url_to_fs(self.place)

    def _withdraw(self, state: Path) -> None:
        self._connect()
        there = f"{self._root}/{state.name}"
        if self._fs.exists(there):
            self._remove(there)

    def _copy(self, state: Path) -> None:
        self._connect()
        there = f"{self._root}/{state.name}"
        self._fs.makedirs(there, exist_ok=True)
        for path in sorted(state.iterdir()):
            if path.name != MANIFEST:
                self._fs.put_file(str(path), f"{there}/{path.name}")

    def _copy_finished(self, out: Path) -> None:
        self._connect()
        there = f"{self._root}/checkpoint"
        self._fs.makedirs(there, exist_ok=True)
        files = (path for path in out.iterdir() if path.is_file() and not path.name.startswith("."))
        for path in sorted(files, key=lambda path: (path.name == "config.json", path.name)):
            self._fs.put_file(str(path), f"{there}/{path.name}")

    def _publish(self, state: Path) -> None:
        self._fs.put_file(str(state / MANIFEST), f"{self._root}/{state.name}/{MANIFEST}")
        for old in self._whole()[: -self._recipe.keep_last]:
            self._remove(f"{self._root}/{old}")

    def _fetch(self, directory: Path) -> str | None:
        self._connect()
        whole = self._whole()
        if not whole:
            return None
        files = {str(path).rpartition("/")[2]: path for path in self._fs.ls(f"{self._root}/{whole[-1]}", detail=False)}
        here = directory / whole[-1]
        if here.is_dir() and files.keys() <= {path.name for path in here.iterdir()}:
            return None
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f".{whole[-1]}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, path in files.items():
            self._fs.get_file(path, str(partial / name))
        shutil.rmtree(here, ignore_errors=True)
        partial.rename(here)
        return whole[-1]

    def _whole(self) -> list[str]:
        """The copies that have a manifest, the oldest first."""
        self._fs.invalidate_cache()
        if not self._fs.exists(self._root):
            return []
        names = [str(path).rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._root, detail=False)]
        steps = sorted(name for name in names if name.startswith(PREFIX))
        return [name for name in steps if self._fs.exists(f"{self._root}/{name}/{MANIFEST}")]

    def _remove(self, there: str) -> None:
        if self._fs.exists(f"{there}/{MANIFEST}"):
            self._fs.rm_file(f"{there}/{MANIFEST}")
        self._fs.rm(there, recursive=True)

    def _attempt(self, action: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """Run ``action`` in a thread, because a network that does not answer would hold the training for ever."""
        if self._hangs:
            return None, TimeoutError(f"an earlier attempt did not answer within {self._recipe.timeout_seconds:g} s")
        results: list[T] = []
        problems: list[Exception] = []

        def work() -> None:
            try:
                results.append(action())
            except Exception as error:
                problems.append(error)

        thread = threading.Thread(target=work, daemon=True, name="sync")
        thread.start()
        thread.join(self._recipe.timeout_seconds)
        if thread.is_alive():
            self._hangs = True
            return None, TimeoutError(f"no answer within {self._recipe.timeout_seconds:g} s")
        return (results[0] if results else None), (problems[0] if problems else None)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _is_credentials(error: Exception) -> bool:
    words = ("credential", "forbidden", "unauthorized", "access denied", "401", "403")
    return isinstance(error, PermissionError) or any(
        word in f"{type(error).__name__} {error}".lower() for word in words
    )
