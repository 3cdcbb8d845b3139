"""The Python face of the CPU engine: load a packed directory, logits, generation. No torch, no transformers."""

from wrinklefree.engine.batch import Batch, BatchItem
from wrinklefree.engine.constraint import Constraint
from wrinklefree.engine.decoding_settings import DecodingSettings
from wrinklefree.engine.engine import Engine
from wrinklefree.engine.generation import Generation, Step
from wrinklefree.engine.sampling import SamplingParams, greedy
from wrinklefree.engine.together import Together

__all__ = [
    "Batch",
    "BatchItem",
    "Constraint",
    "DecodingSettings",
    "Engine",
    "Generation",
    "SamplingParams",
    "Step",
    "Together",
    "greedy",
]
