"""What a quickstart has finished, on disk, so that a second run goes on where the first stopped and never mixes two.

``OUT/journal.json`` holds the settings and the figures of each finished phase. A run with other settings, or after a
complete run, starts clean: everything the journal lists is removed first. A directory without a journal is not ours.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from wrinklefree.artifact.files import json_bytes, read_json, write_bytes
from wrinklefree.errors import FormatError, InputError

FILE = "journal.json"
# Everything a run may leave in its directory; nothing else is ever removed.
OWN = ("calibrated", "student", "packed", "report.json", "report.md", "report.png", "metrics.jsonl", FILE)


class Journal:
    """The finished phases of the run in ``out`` and their figures."""

    def __init__(self, out: Path, settings: dict[str, Any], phases: dict[str, Any]) -> None:
        self.out = out
        self.settings = settings
        self.phases = phases

    @classmethod
    def open(cls, out: Path, settings: dict[str, Any]) -> tuple[Journal, str]:
        """Return the journal of ``out`` and a sentence on what the run does with what it found there.

        Raises: InputError when ``out`` is something else than a quickstart's directory, or cannot be made.
        """
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: is a file; choose another --out")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{out}: cannot be made ({error.strerror})") from error
        if not (out / FILE).exists():
            if any(out.iterdir()):
                raise InputError(f"{out}: exists and is no quickstart's directory; choose another --out")
            return cls(out, settings, {})._kept(), "A new run."
        try:
            found = read_json(out / FILE)
        except FormatError:
            found = {}
        phases = found.get("phases")
        if found.get("settings") == settings and isinstance(phases, dict) and not found.get("complete"):
            done = ", ".join(phases) or "nothing"
            return cls(out, settings, phases), f"Going on with the run found in {out}; done already: {done}."
        why = "it was complete" if found.get("complete") else "its settings were others, or its journal is damaged"
        for name in OWN:
            _remove(out / name)
        return cls(out, settings, {})._kept(), f"Starting clean in {out}: {why}."

    def done(self, phase: str) -> bool:
        return phase in self.phases

    def finish(self, phase: str, figures: dict[str, Any]) -> None:
        """Record a finished phase."""
        self.phases[phase] = figures
        self._kept()

    def complete(self) -> None:
        """Record that the run came to its end."""
        self._kept(complete=True)

    def _kept(self, complete: bool = False) -> Journal:
        value = {"settings": self.settings, "phases": self.phases, "complete": complete}
        write_bytes(self.out / FILE, json_bytes(value))
        return self


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
