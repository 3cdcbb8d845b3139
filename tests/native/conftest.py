"""The C++ without Python, built once for all tests of this directory and kept between runs."""

from __future__ import annotations

import fcntl
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "tests"  # ignored by git


@pytest.fixture(scope="session")
def native_build() -> Path:
    """The directory with kernel_test and the shared library of the C interface."""
    missing = [tool for tool in ("cmake", "cc", "c++") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)}: the C++ programs and the C interface were not built, nor tested")
    build = BUILD / platform.machine()
    options = ("-DWF_BUILD_PYTHON=OFF", "-DWF_BUILD_TESTS=ON", "-DWF_BUILD_C_API=ON", "-DCMAKE_BUILD_TYPE=Release")
    build.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker of this test run may need it too
        for command in (
            ("cmake", "-S", ROOT, "-B", build, *options),
            ("cmake", "--build", build, "--target", "kernel_test", "wrinklefree", "wf_training", "--parallel", "2"),
        ):
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return build
