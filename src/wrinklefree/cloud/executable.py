"""Where a provider's own command is: at the path that was given, or on PATH."""

from __future__ import annotations

import shutil
from pathlib import Path

from wrinklefree.errors import InputError, MissingDependencyError


def find_executable(name: str, given: Path | None, missing: str) -> str:
    """Return the path of the command ``name``; ``--NAME`` is the option that ``given`` came from.

    Raises: InputError when ``given`` is no file; MissingDependencyError with ``missing`` when the command is nowhere.
    """
    if given is not None and not given.is_file():
        raise InputError(f"--{name} {given}: there is no such file")
    found = str(given) if given is not None else shutil.which(name)
    if found is None:
        raise MissingDependencyError(missing)
    return found
