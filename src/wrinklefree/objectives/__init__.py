"""What a student learns from: losses that return sums, the manager that combines them, the curriculum."""

from __future__ import annotations

from wrinklefree.objectives.attention_relation import AttentionRelation
from wrinklefree.objectives.block_attention import BlockAttention
from wrinklefree.objectives.block_diffusion import BlockDiffusion, CleanHalf
from wrinklefree.objectives.classification import Classification, ClassKD
from wrinklefree.objectives.drafts import CleanHalfKD, Drafts
from wrinklefree.objectives.layerwise import Layerwise
from wrinklefree.objectives.logits_kd import LogitsKD
from wrinklefree.objectives.next_token import NextToken
from wrinklefree.objectives.tcs import TCS

# A new objective is one module and one line here. The value is its configuration and its behaviour in one.
OBJECTIVES: dict[str, type] = {
    "next_token": NextToken,
    "layerwise": Layerwise,
    "logits_kd": LogitsKD,
    "attention_relation": AttentionRelation,
    "block_diffusion": BlockDiffusion,
    "clean_half": CleanHalf,
    "clean_half_kd": CleanHalfKD,
    "tcs": TCS,
    "drafts": Drafts,
    "block_attention": BlockAttention,
    "classification": Classification,
    "class_kd": ClassKD,
}
