"""The toy tokenizers and checkpoints of tests/artifact, tests/export and tests/train are used here too."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("artifact", "export", "train")]
