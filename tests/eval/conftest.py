"""The toy tokenizers and checkpoints of tests/artifact and tests/export are used here too."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("artifact", "export")]
