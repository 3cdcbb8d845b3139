"""The toy models and streams live with the training tests, the diffusion models beside all tests."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / "train"), str(Path(__file__).parents[1])]
