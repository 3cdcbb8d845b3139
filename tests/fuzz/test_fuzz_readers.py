"""A short run of each fuzz target: damaged files are read or refused with a message, never anything else.

`make fuzz` runs them for longer, and the C++ targets too. Two broken readers show that each kind of find is found.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FUZZ = Path(__file__).parent
READERS = ["safetensors", "config", "gguf", "packed", "tokenizer", "template"]
READERS += ["gguf-tokenizer", "tokenizer-to-gguf", "gguf-model", "hf", "bin", "engine", "loader"]


def _run(*words: object) -> tuple[list[dict[str, Any]], str]:
    command = [sys.executable, str(FUZZ / "fuzz_readers.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_short_run(tmp_path: Path) -> None:
    outcomes, errors = _run(*READERS, "--cases", 60, "--seed", 3, "--keep", tmp_path)
    assert [outcome["reader"] for outcome in outcomes] == READERS, errors[-3000:]
    for outcome in outcomes:
        assert outcome["finds"] == [], errors[-3000:]
        assert outcome["cases"] == 60 and outcome["refused"] > 20
    assert sum(outcome["accepted"] for outcome in outcomes) > 0  # some damage is none


@pytest.mark.slow
def test_longer_run(tmp_path: Path) -> None:
    outcomes, errors = _run(*READERS, "--cases", 10_000, "--seconds", 30, "--seed", 4, "--keep", tmp_path)
    assert [outcome["finds"] for outcome in outcomes] == [[]] * len(READERS), errors[-3000:]


BROKEN = {
    "raise TypeError('no')": "TypeError",
    "raise FormatError('')": "cannot be shown",
    "np.ones(40 << 20)": "MemoryError",
    "sum(range(2_000_000))": "processor time",
    "raise FormatError(chr(27))": "",  # is escaped
}
SCRIPT = """
import json, sys, pathlib
sys.path.insert(0, sys.argv[1])
import numpy as np
import fuzz_readers, readers
from wrinklefree.errors import FormatError
good = readers.READERS["safetensors"]
fuzz_readers.MAX_SECONDS = 0.01
for broken in json.loads(sys.argv[2]):
    calls = []
    def read(directory):
        calls.append(1)
        return good.read(directory) if len(calls) == 1 else exec(broken)  # the seed is read
    readers.READERS["broken"] = readers.Reader(good.seeds, read)
    print(json.dumps(fuzz_readers.fuzz("broken", 3, 60, 0, pathlib.Path(sys.argv[3])).finds))
"""


def test_what_is_found(tmp_path: Path) -> None:
    words = (sys.executable, "-c", SCRIPT, str(FUZZ), json.dumps(list(BROKEN)), str(tmp_path))
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for (broken, message), line in zip(BROKEN.items(), done.stdout.splitlines(), strict=True):
        assert bool(json.loads(line)) == bool(message) and message in line, broken
    assert list(tmp_path.iterdir())  # the files of a find are kept
