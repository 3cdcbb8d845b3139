"""The errors a user can cause. Everything else that goes wrong is a bug and keeps its stack trace.

A message names the place as the user wrote it, what was found, what is allowed, and what to do.
The command line prints it on one line and exits with 2; a server turns it into an OpenAI-style error object.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_MESSAGE_CHARACTERS = 2_000


class InputError(ValueError):
    """The user's input (argument, file, recipe, prompt) is wrong.

    A message may quote a file, and a file is not to be trusted: what cannot be printed (control characters that a
    terminal would obey, halves of surrogate pairs) is escaped, and a message longer than a screen loses its middle.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_printable(message))


def _printable(message: str) -> str:
    if len(message) > _MAX_MESSAGE_CHARACTERS:
        half = _MAX_MESSAGE_CHARACTERS // 2
        message = f"{message[:half]} ... {message[-half:]}"
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in message)


class FormatError(InputError):
    """A file is not what its format says: truncated, inconsistent, of an unknown version or type."""


class MissingDependencyError(ImportError):
    """An optional package is needed; the message carries the exact pip line."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says what was seen, and what is left."""


class VerificationError(RuntimeError):
    """What was written does not behave like its source; nothing is left under the final name."""


def unknown_name(kind: str, found: str, allowed: Iterable[str]) -> InputError:
    """Return the error for a name that is not in a list, with the nearest match and the choices."""
    choices = sorted(allowed)
    near = difflib.get_close_matches(found, choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {found!r}{hint} (allowed: {', '.join(choices)})")
