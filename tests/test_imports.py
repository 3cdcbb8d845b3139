"""Trap T3: a module that is named but not there. Every module of the package imports in a fresh interpreter.

But for the app that only `modal run` reads, in an environment that has Modal: `make cloud` imports it.
"""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import importlib, pkgutil, wrinklefree
names = [m.name for m in pkgutil.walk_packages(wrinklefree.__path__, "wrinklefree.")]
names.remove("wrinklefree.cloud.modal_app")
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_t3_every_module_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", _PROGRAM], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
