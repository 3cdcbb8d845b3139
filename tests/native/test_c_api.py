"""The C interface: a C program (native/tests/c_api_test.c) loads a toy model through the shared library; its logits
must be those of the Python engine, to the last bit, and the library's symbols those of the header."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wrinklefree.engine import Batch, BatchItem, Engine

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "engine"))

from toy_models import make_toy  # noqa: E402


@pytest.fixture(scope="module")
def library(native_build: Path) -> Path:
    (found,) = [path for end in ("so", "dylib") for path in native_build.glob(f"libwrinklefree.{end}")]
    return found


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_a_c_program_gets_the_logits_of_python(library: Path, tmp_path: Path) -> None:
    program = tmp_path / "c_api_test"
    source = ROOT / "native" / "tests" / "c_api_test.c"
    flags = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{ROOT / 'native' / 'include'}")
    link = (f"-L{library.parent}", "-lwrinklefree", f"-Wl,-rpath,{library.parent}")
    _run("cc", *flags, str(source), "-o", str(program), *link)
    directory = make_toy(tmp_path / "toy", "qwen3")
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    first, *values = _run(str(program), str(directory), *map(str, tokens)).split("\n")[:-1]
    engine = Engine.load(directory, threads=2)
    assert first == f"{engine.kernels_name} {engine.vocab_size}"
    found = np.array([float.fromhex(value) for value in values], np.float32).reshape(-1, engine.vocab_size)
    np.testing.assert_array_equal(found[: len(tokens)], engine.logits(tokens))
    with Batch(engine) as batch:  # and then three rows of a block of four
        (wanted,) = batch.step([BatchItem(batch.open(), tokens[:4], [0, 2, 3], block=4)])
    np.testing.assert_array_equal(found[len(tokens) :], wanted)


def test_symbols_are_those_of_the_header(library: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm: the symbols were not read")
    header = (ROOT / "native" / "include" / "wrinklefree.h").read_text()
    declared = set(re.findall(r"^WF_API .*?(wf_\w+)\(", header, re.MULTILINE))
    lines = _run("nm", "-D", "--defined-only", str(library)).splitlines()
    exported = {line.split()[-1] for line in lines if line.split()[1] in "TDBR"}
    assert declared and declared == {name for name in exported if not name.startswith("_")}
