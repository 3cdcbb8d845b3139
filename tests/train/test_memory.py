"""Keeping freed memory: the C library takes every setting, and memory is still usable afterwards."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest


def test_the_c_library_takes_the_settings() -> None:
    if getattr(ctypes.CDLL(None), "mallopt", None) is None:
        pytest.skip("this C library has no mallopt; keeping freed memory was not checked")
    code = "from wrinklefree.train.memory import keep_freed_memory as k; import sys; sys.exit(0 if k() else 1)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
