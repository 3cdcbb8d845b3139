"""The toy models and streams live with the training tests, the diffusion models beside all tests."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / room) for room in ("artifact", "train", "")]
