"""The C interface: a C program (native/tests/c_api_test.c) loads a toy model through the shared library; its logits
must be those of the Python engine, to the last bit, and the library's symbols those of the header."""

from __future__ import annotations

import ctypes
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


def test_t25_symbols_are_those_of_the_header_and_unmangled(library: Path) -> None:
    if shutil.which("nm") is None or sys.platform == "darwin":
        pytest.skip("no GNU nm: the symbols were not read")
    header = (ROOT / "native" / "include" / "wrinklefree.h").read_text()
    declared = set(re.findall(r"^WF_API .*?(wf_\w+)\(", header, re.MULTILINE))
    lines = _run("nm", "-D", "--defined-only", str(library)).splitlines()
    # Of every kind, weak ones too: templates of the C++ library would show as such. Some linkers add their own marks.
    exported = {line.split()[-1].split("@")[0] for line in lines if line.split()[1] != "A"}
    assert declared and exported - {"_init", "_fini", "_edata", "_end", "__bss_start"} == declared


@pytest.mark.parametrize(("compiler", "standard", "suffix"), [("cc", "c99", "c"), ("c++", "c++11", "cc")])
def test_t25_the_header_stands_alone_in_c_and_cpp(compiler: str, standard: str, suffix: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}: the header was not compiled")
    source = tmp_path / f"program.{suffix}"
    source.write_text(
        '#include "wrinklefree.h"\nint main(void) { return wf_api_version() == WF_API_VERSION ? 0 : 1; }\n'
    )
    flags = (f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{ROOT / 'native' / 'include'}")
    _run(compiler, *flags, "-c", str(source), "-o", str(tmp_path / "program.o"))


def test_a_file_is_refused_with_what_to_do(library: Path, tmp_path: Path) -> None:
    wf = ctypes.CDLL(str(library))
    wf.wf_load.restype, wf.wf_error.restype = ctypes.c_void_p, ctypes.c_char_p
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert wf.wf_load(str(tmp_path / "model.gguf").encode(), None) is None
    said = wf.wf_error().decode()
    assert "model.gguf: is a file; wf_load takes a packed directory, which wf import writes" in said
