"""Variables that a job needs, from a .env file and this process; their values go nowhere but into the child's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wrinklefree.artifact.files import read_bytes
from wrinklefree.errors import InputError

# Handed on when they are there: downloads of gated models, and curves.
WELCOME = ("HF_TOKEN", "WANDB_API_KEY")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Variables:
    """``given``: with values the user typed, which may be shown. ``secret``: others, which are never shown."""

    given: Mapping[str, str] = field(default_factory=dict)
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)


def collect(
    asked: Sequence[str],
    needed: Mapping[str, str],
    file: Path | None,
    process: Mapping[str, str],
    welcome: Sequence[str] = WELCOME,
) -> Variables:
    """Return what a job gets.

    ``asked``: "NAME=VALUE", or "NAME" for a value that is here. ``needed``: name -> why.
    ``welcome``: handed on when they are there. ``file``: the .env file, which
    is looked at first, then ``process``. An empty value counts as missing.

    Raises: InputError that names every variable which is missing at once.
    """
    given = dict(word.split("=", 1) for word in asked if "=" in word)
    for name in (word.partition("=")[0] for word in asked):
        if not _NAME.fullmatch(name):
            raise InputError(f"--env {name}: a variable is called by letters, digits and _; give NAME or NAME=VALUE")
    known = {**process, **(read_env(file) if file else {})}
    reasons = {**{word: "--env" for word in asked if "=" not in word}, **needed}
    missing = {name: why for name, why in reasons.items() if not known.get(name) and not given.get(name)}
    if missing:
        where = f"in {file} or " if file else ""
        found = ", ".join(f"{name} ({why})" for name, why in missing.items())
        raise InputError(f"missing variables: {found}; set each {where}in the environment. Nothing was started")
    names = [name for name in dict.fromkeys((*reasons, *welcome)) if name not in given]
    return Variables(given, {name: known[name] for name in names if known.get(name)})


def read_env(file: Path) -> dict[str, str]:
    """Return the variables of a .env file: lines NAME=VALUE, ``export`` before and quotes around allowed, # comments.

    Raises: InputError with the line's number, and without what stands there: it may be a key.
    """
    found = {}
    for number, line in enumerate(_lines(file), 1):
        words = line.strip().removeprefix("export ").strip()
        if not words or words.startswith("#"):
            continue
        name, equals, value = words.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not _NAME.fullmatch(name):
            raise InputError(f"{file}, line {number}: is not NAME=VALUE")
        if value[:1] in ("'", '"'):
            end = value.find(value[0], 1)
            if end < 0 or value[end + 1 :].partition("#")[0].strip():
                raise InputError(f"{file}, line {number}: the quotes of {name} do not close")
            value = value[1:end]
        else:
            value = re.split(r"\s#", value, maxsplit=1)[0].rstrip()
        found[name] = value
    return found


def _lines(file: Path) -> Iterable[str]:
    try:
        return read_bytes(file, _MAX_BYTES).decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is no text file in UTF-8") from error
