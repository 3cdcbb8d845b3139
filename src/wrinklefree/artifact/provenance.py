"""What a result was obtained with: versions, commit, machine, command. Whoever repeats it needs exactly this."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wrinklefree.version import __version__

# Packages whose version can change a figure; those that are not installed are left out.
PACKAGES = ("numpy", "torch", "transformers", "tokenizers", "lightning", "datasets", "lm_eval", "ax-platform")
_GIT_SECONDS = 10
_PASSWORD = re.compile(r"(://[^/@:\s]*):[^@\s]*@")  # of a URL: a result is made to be shown


def provenance() -> dict[str, Any]:
    """Return plain values for a JSON file: what is running, where, and when (UTC).

    ``commit``: of the checkout this package runs from, None when it runs from no checkout; ``changed``: whether that
    checkout has changes which are not committed. ``command``: the words this process was started with,
    without the passwords of URLs.
    """
    commit, changed = _commit(Path(__file__).resolve().parents[3])
    return {
        "wrinklefree": __version__,
        "commit": commit,
        "changed": changed,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *(_PASSWORD.sub(r"\1:***@", word) for word in sys.argv[1:])],
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Return the processor's name, the cores this process may use, memory in GiB (1 decimal), and the system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _processor(), "cores": cores, "memory_gib": _memory_gib(), "system": platform.platform()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(checkout: Path) -> tuple[str | None, bool]:
    """Return the commit of a directory that is itself the top of a checkout, and whether files differ from it."""
    if not (checkout / ".git").exists():
        return None, False
    try:
        commit = _git(checkout, "rev-parse", "HEAD")
        return commit, bool(_git(checkout, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, False


def _git(checkout: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True, timeout=_GIT_SECONDS
    )
    return done.stdout.strip()
