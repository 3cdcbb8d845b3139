"""The toy tokenizers and packed directories of tests/artifact are used here too, and the diffusion models of tests."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "artifact"), str(Path(__file__).parents[1])]
