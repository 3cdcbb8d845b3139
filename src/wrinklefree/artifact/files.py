"""Reading small files with a limit, and writing files and directories that are complete or absent.

Everything the project writes goes to a temporary name in the same directory first and is renamed when it is
complete, so that a crash, a full disk or Ctrl-C never leaves half a file under a name somebody trusts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wrinklefree.artifact.json_text import parse_json
from wrinklefree.errors import FormatError, InputError

MAX_JSON_BYTES = 512 * 1024 * 1024
_CHUNK_BYTES = 1 << 20
# EFBIG is what a file-size limit (ulimit -f) answers; for the user it is the same situation.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the content of a small file.

    Raises: FormatError when it is missing, no plain file, unreadable or larger than ``max_bytes``.
    """
    try:
        if not path.is_file():
            raise FormatError(f"{path}: found no such file")
        size = path.stat().st_size
        if size > max_bytes:
            raise FormatError(f"{path}: found {size} bytes, at most {max_bytes} are allowed")
        return path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})") from error


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises: FormatError when the file is missing, too large, not strict JSON (`parse_json`), or not an object.
    """
    return parse_json(read_bytes(path, max_bytes), str(path))


def json_bytes(value: object) -> bytes:
    """Return an object as the UTF-8 JSON this project writes: two spaces, keys in the given order."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def space_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing ``path`` into an InputError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise InputError(
                f"{path}: no space left for the output ({error.strerror}); free some space or choose another "
                "directory; nothing was left under that name"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises: InputError when there is no space or no permission.
    """
    with space_errors(path):
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).chmod(_file_mode())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Give a temporary directory beside ``out`` and rename it to ``out`` when the block ends well.

    When the block raises, the temporary directory is removed and nothing exists under ``out``.

    Raises: InputError when ``out`` exists already, or for lack of space or permission.
    """
    out = Path(out)
    with _temporary_beside(out, "directory") as temporary:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(out)


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """Give a path in a temporary directory beside ``out``, for a file that becomes ``out`` when the block ends well.

    The file has its final name there, because programs look at what a name ends with. When the block raises, nothing
    exists under ``out``.

    Raises: InputError when ``out`` exists already, or for lack of space or permission.
    """
    out = Path(out)
    with _temporary_beside(out, "file") as temporary:
        yield temporary / out.name
        (temporary / out.name).rename(out)


@contextmanager
def _temporary_beside(out: Path, what: str) -> Iterator[Path]:
    """Give a directory beside ``out``, on its file system, that is gone afterwards unless it was renamed."""
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: exists already; choose another output {what} or remove this one")
    with space_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


def _file_mode() -> int:
    # mkstemp creates 0600; a model file should be as readable as any other file of the user.
    return 0o666 & ~_umask()
