"""The shapes of the comparison: those of ``wf bench`` and a stand-in for peers whose blocks do not divide 576."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wrinklefree.eval.speed import SHAPES

# Blocks of 128 (I2_S) and 256 (TQ2_0) do not divide SmolLM2-135M's width of 576; 768 is the next width they divide.
STAND_IN = "smollm2-135m-768"

PEER_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "bitnet-2b": SHAPES["bitnet-2b"],
    "smollm2-135m": SHAPES["smollm2-135m"],
    STAND_IN: {**SHAPES["smollm2-135m"], "hidden_size": 768, "num_attention_heads": 12},
}
