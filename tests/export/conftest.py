"""The toy tokenizers and packed directories of tests/artifact are used here too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "artifact"))
