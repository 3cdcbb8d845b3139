"""A `wf serve` of a toy in a process of its own, for clients that live in another environment.

Nothing here imports wrinklefree. WRINKLEFREE_PYTHON names the Python that has it (default: the checkout's .venv).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = os.environ.get("WRINKLEFREE_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
NODE_MODULES = Path(os.environ.get("WRINKLEFREE_NODE_MODULES", str(ROOT / ".venv-clients" / "node_modules")))
KEY, MODEL = "a-key-for-tests", "smollm2"

sys.path.append(str(ROOT / "tests" / "server"))

from served_process import ServedProcess  # noqa: E402


@dataclass(frozen=True)
class Served:
    """``url`` ends with /v1. ``directory``: of the packed model, whose tokenizer some clients read."""

    url: str
    model: str
    directory: Path

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def own(self, verb: str, lines: list[Any]) -> list[Any]:
        """What our own side says to each line; see own_side.py."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        done = subprocess.run(
            [PYTHON, str(HERE / "own_side.py"), verb, str(self.directory)],
            input=text, capture_output=True, text=True, check=True, env=environment(),
        )  # fmt: skip
        return [json.loads(line) for line in done.stdout.splitlines()]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


@contextmanager
def serving(toy: Path, *options: str) -> Iterator[Served]:
    """Serve the toy with options of `wf serve`; it must end with 0 and without a stack trace."""
    process = ServedProcess(toy, "--api-key", KEY, "--name", MODEL, *options, environment=environment(), python=PYTHON)
    with process:
        yield Served(f"{process.url}/v1", MODEL, toy)
        assert process.stop() == 0, "".join(process.lines)
    assert "Traceback" not in "".join(process.lines), "".join(process.lines)
