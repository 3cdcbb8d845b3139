"""The kernels as a plain C++ program: natively, for aarch64 under emulation, and what their object files export."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "tests"  # kept between runs: ignored by git


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_runnable_table_equals_the_reference(native_build: Path) -> None:
    assert "reference: run" in _run(native_build / "kernel_test", "50")


def test_kernel_files_export_only_their_table(native_build: Path) -> None:
    """A weak or global function compiled with wider instructions could be the copy that other files link to."""
    if shutil.which("nm") is None:
        pytest.skip("no nm: the symbols of the kernels were not checked")
    exported = {
        "reference": "kReferenceKernels",
        "avx2": "kAvx2Kernels",
        "avxvnni": "kAvxVnniKernels",
        "avx512vnni": "kAvx512VnniKernels",
        "amx": "kAmxKernels",
        "neon": "kNeonDotprodKernels",
        "neon_i8mm": "kNeonI8mmKernels",
        "training_plain": "kPlainTraining",
        "training_avx2": "kAvx2Training",
        "training_avx512": "kAvx512Training",
    }
    objects = [p for p in native_build.rglob("*.cc.o") if p.name.removesuffix(".cc.o") in exported]
    assert len(objects) >= 2
    for path in objects:
        defined = [line.split() for line in _run("nm", "-C", "--defined-only", path).splitlines()]
        visible = [fields[2:] for fields in defined if fields[1].isupper() or fields[1] in "vw"]
        assert visible == [[f"wf::{exported[path.name.removesuffix('.cc.o')]}"]], path.name


@pytest.mark.slow
def test_neon_under_emulation() -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64-static")
    if platform.machine() in ("aarch64", "arm64"):
        pytest.skip("NEON kernels: run natively by the other tests")
    if compiler is None or shutil.which("cmake") is None:
        pytest.skip("NEON kernels: not compiled, not run (no aarch64-linux-gnu-g++)")
    if emulator is None:
        pytest.skip("NEON kernels: not run (no qemu-aarch64-static)")
    out = _run("sh", ROOT / "native" / "tests" / "run_neon_emulated.sh", BUILD / "neon", "10")
    assert "neon_dotprod: run" in out
