"""A file written piece by piece that gets its name only when every announced piece is in it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from wrinklefree.artifact.files import space_errors
from wrinklefree.errors import InputError


class WholeFile:
    """Use it as a context manager; when the block raises, nothing is left.

    The whole size is reserved at the start, so that a full disk shows before the work, not after it.
    """

    def __init__(self, path: Path, header: bytes, size: int, pieces: Iterable[str]) -> None:
        """Reserve ``size`` bytes that begin with ``header`` under a temporary name, for ``pieces`` by name.

        Raises: InputError when there is no space or no permission.
        """
        self.path = path
        self._missing = set(pieces)
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with space_errors(path):
            self._stream = self._temporary.open("xb")
            try:
                os.posix_fallocate(self._stream.fileno(), 0, size)
                self._stream.write(header)
            except BaseException:
                self._abandon()
                raise

    def is_missing(self, name: str) -> bool:
        """Return whether a piece was announced and is not written yet."""
        return name in self._missing

    def put(self, name: str, offset: int, data: memoryview) -> None:
        """Write a piece at its offset. Raises: InputError when there is no space."""
        with space_errors(self.path):
            self._stream.seek(offset)
            self._stream.write(data)
        self._missing.discard(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        try:
            if self._missing:
                raise InputError(f"{self.path}: never written: {', '.join(sorted(self._missing)[:3])}")
            with space_errors(self.path):
                self._stream.flush()
                os.fsync(self._stream.fileno())
                self._stream.close()
                self._temporary.replace(self.path)
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        try:
            self._stream.close()
        except OSError:  # what is still buffered cannot be written either; the file goes away anyhow
            pass
        finally:
            self._temporary.unlink(missing_ok=True)
