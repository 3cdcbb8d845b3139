"""The toy models and servers of other rooms' tests are used here too."""

import sys
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parents[1] / room) for room in ("artifact", "engine", "export", "server", "teachers", "train")
]
