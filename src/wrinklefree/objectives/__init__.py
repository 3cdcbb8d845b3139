"""What a student learns from: losses that return sums, the manager that combines them, the curriculum."""

from __future__ import annotations

from wrinklefree.objectives.attention_relation import AttentionRelation
from wrinklefree.objectives.layerwise import Layerwise
from wrinklefree.objectives.logits_kd import LogitsKD
from wrinklefree.objectives.next_token import NextToken

# A new objective is one module and one line here. The value is its configuration and its behaviour in one.
OBJECTIVES: dict[str, type] = {
    "next_token": NextToken,
    "layerwise": Layerwise,
    "logits_kd": LogitsKD,
    "attention_relation": AttentionRelation,
}
