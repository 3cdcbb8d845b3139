"""Hartmann's function of six variables as a program: hartmann.py RESULT.json X1 ... X6.

Source: Surjanovic and Bingham, Virtual Library of Simulation Experiments, "Hartmann 6-Dimensional Function"; minimum
-3.32237 at (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573).
"""

import json
import math
import sys
from pathlib import Path

_HEIGHTS = (1.0, 1.2, 3.0, 3.2)
_WIDTHS = (
    (10, 3, 17, 3.5, 1.7, 8),
    (0.05, 10, 17, 0.1, 8, 14),
    (3, 3.5, 1.7, 10, 17, 8),
    (17, 8, 0.05, 10, 0.1, 14),
)
_PLACES = (
    (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
    (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
    (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
    (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
)


def hartmann(x: list[float]) -> float:
    """Return the value at a point of the unit cube [6]."""
    return -sum(
        height * math.exp(-sum(w * (v - p) ** 2 for w, v, p in zip(widths, x, places, strict=True)))
        for height, widths, places in zip(_HEIGHTS, _WIDTHS, _PLACES, strict=True)
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({"value": hartmann([float(word) for word in sys.argv[2:]])}))
