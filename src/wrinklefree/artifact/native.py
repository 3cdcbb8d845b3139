"""The door to the C++ extension: everything in Python that needs it asks here."""

from __future__ import annotations

import importlib
from typing import Any

from wrinklefree.errors import MissingDependencyError


def load_native() -> Any:
    """Return the extension module ``wrinklefree._native``.

    Raises: MissingDependencyError when it was not built or is for another Python.
    """
    try:
        return importlib.import_module("wrinklefree._native")
    except ImportError as error:
        raise MissingDependencyError(
            f"wrinklefree._native, the compiled engine, cannot be imported ({error}); "
            "install it with `pip install wrinklefree`, or in a checkout with `pip install .` "
            "(needs a C++20 compiler; CMake and nanobind are fetched by pip)"
        ) from error
