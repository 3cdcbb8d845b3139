"""How much memory a recipe's steps take, from a model's config.json alone; `benchmarks/plan_memory.py` measures it.

The parts that stay all the time are counted: weights, optimizer state, a teacher. What comes and goes has two high
points, and the higher one counts: at the end of a forward all activations are kept and the head works; at the end of
a backward all gradients are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wrinklefree.objectives.head import chunk_tokens
from wrinklefree.optim.build import OptimizerConfig
from wrinklefree.train.recipe import Recipe

# Bytes of the interpreter with its libraries on a CPU (0.4 GiB before training were measured, the rest is what runs of
# three configurations were short of), and of a CUDA context with its kernels (assumed).
CPU_RUNTIME, CUDA_RUNTIME = 0.75 * 2**30, 0.6 * 2**30
# Chunks of logits alive at once in the head: student's, its gradient, softmax, a work array; with a teacher two more.
_CHUNKS, _TEACHERS_CHUNKS = 4, 2
# Of the rest, what the allocator cannot hand out again; measured.
_FRAGMENTS = 0.05
_BNB_SMALL, _BNB_BLOCK = 4096, 256


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder: D ``hidden``, F ``width``, H ``heads`` and K ``keys`` of E ``head`` each.

    ``qk_norm``: queries and keys are normed. ``sandwich``: norms after attention and MLP too. ``full_scores``:
    attention keeps every score, because a cap on them has no fused form. ``labels``: of a classifier, 0 of others.
    """

    hidden: int
    width: int
    layers: int
    heads: int
    keys: int
    head: int
    vocabulary: int
    tied: bool
    qk_norm: bool = False
    sandwich: bool = False
    full_scores: bool = False
    own_sub_norms: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    labels: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Return the shape that a config.json describes. Raises: KeyError, TypeError, ValueError when it does not."""
        kind, heads = config.get("model_type"), int(config["num_attention_heads"])
        bias = bool(config.get("attention_bias"))
        classifies = any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())
        return cls(
            hidden=int(config["hidden_size"]),
            width=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            keys=int(config.get("num_key_value_heads") or heads),
            head=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings")),
            qk_norm=kind in ("qwen3", "gemma3_text"),
            sandwich=kind in ("gemma2", "gemma3_text"),
            full_scores=kind == "gemma2",
            own_sub_norms=kind == "bitnet",
            attention_bias=bias or kind == "qwen2",
            output_bias=bias,
            mlp_bias=bool(config.get("mlp_bias")),
            labels=len(config.get("id2label") or ()) if classifies else 0,
        )

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """Outputs and inputs of each ternary matrix of a layer: q, k, v, o, gate, up, down."""
        queries, keys = self.heads * self.head, self.keys * self.head
        return (
            (queries, self.hidden), (keys, self.hidden), (keys, self.hidden), (self.hidden, queries),
            (self.width, self.hidden), (self.width, self.hidden), (self.hidden, self.width),
        )  # fmt: skip

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of one layer."""
        return sum(rows * columns for rows, columns in self.linears)

    @property
    def layer_norms(self) -> int:
        """Gains and biases of one layer, without inserted SubLN."""
        gains = (4 if self.sandwich else 2) * self.hidden + (2 * self.head if self.qk_norm else 0)
        gains += self.hidden + self.width if self.own_sub_norms else 0
        biases = self.head * (self.heads + 2 * self.keys) if self.attention_bias else 0
        biases += 2 * self.width + self.hidden if self.mlp_bias else 0
        return gains + biases + (self.hidden if self.output_bias else 0)

    @property
    def embeddings(self) -> int:
        """Weights of the token table and of the head, or of a classifier's rows instead of one."""
        heads = self.labels if self.labels else 0 if self.tied else self.vocabulary
        return (self.vocabulary + heads) * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters, without inserted SubLN."""
        return self.layers * (self.layer_weights + self.layer_norms) + self.embeddings + self.hidden


def memory_bytes(recipe: Recipe, shape: Shape, runtime: float = CPU_RUNTIME) -> dict[str, float]:
    """Return bytes of one process at a step's high point, by part; sharded parts are divided among the processes."""
    size = 4 if recipe.model.dtype == "float32" else 2
    shards = recipe.device.processes if recipe.device.strategy == "fsdp" else 1
    sub_norms = shape.layers * (shape.heads * shape.head + shape.width) if _subln(recipe, shape) else 0
    weights = (shape.parameters + sub_norms) * size / shards
    before, after = _high_points(recipe, shape, weights, size, recipe.taught)
    parts = {
        "weights": weights,
        "optimizer": optimizer_bytes(recipe.optimizer, shape, size) / shards,
        "teacher": shape.parameters * _teacher_size(recipe),
    }
    parts |= before if sum(before.values()) > sum(after.values()) else after
    return {**parts, "fragments": _FRAGMENTS * sum(parts.values()), "runtime": runtime}


def activation_bytes(recipe: Recipe, shape: Shape, micro_batch: int | None = None) -> float:
    """Return the bytes that one forward keeps for its backward, the ternary weights it computed included."""
    # Noised views are further positions; they count as so many more sequences.
    rows = (micro_batch or recipe.batch.micro_batch) * max(recipe.positions_per_token, 1)
    layer = layer_bytes(recipe, shape, rows)
    if not getattr(recipe.device, "gradient_checkpointing", False):
        return shape.layers * layer
    tokens = rows * recipe.data.sequence_length
    return shape.layers * 4.0 * tokens * shape.hidden + layer


def layer_bytes(recipe: Recipe, shape: Shape, micro_batch: int | None = None) -> float:
    """Return the bytes one decoder layer keeps: counted on toys with `torch.autograd.graph.saved_tensors_hooks`.

    In float32, numbers for each token: 6 hidden, 6 width, 6 queries (of them 2 width and 1 query for SubLN), 4 hidden
    more for norms after the blocks, 2 queries and 2 keys for QK-norm; and the mask, and the weights as they were used.
    In bfloat16 about half of each, but norms, which are computed in float32.
    """
    rows, length = micro_batch or recipe.batch.micro_batch, recipe.data.sequence_length
    queries, keys = shape.heads * shape.head, shape.keys * shape.head
    hidden = 6.0 + (4.0 if shape.sandwich else 0.0)
    subln = _subln(recipe, shape) or shape.own_sub_norms
    width, query = (6.0, 6.0) if subln else (4.0, 5.0)
    query, key = (query + 2.0, 2.0) if shape.qk_norm else (query, 0.0)
    linear = 1.0
    if recipe.model.dtype == "bfloat16":
        hidden, width, query, key, linear = 0.6 * hidden, 0.53 * width, 0.6 * query, 0.6 * key, 0.55
    elif recipe.device.precision == "bf16-mixed":
        hidden, width, query, key, linear = 1.05 * hidden, 0.55 * width, 0.65 * query, 0.65 * key, 0.55
    token = hidden * shape.hidden + width * shape.width + query * queries + key * keys + shape.heads + 4
    scores = length * (2.0 * shape.heads if shape.full_scores else 1.0)
    return 4.0 * (rows * length * (token + scores) + linear * shape.layer_weights)


def optimizer_bytes(config: OptimizerConfig, shape: Shape, size: int) -> float:
    """Return the bytes of an optimizer's state (and APOLLO's projections) for parameters of ``size`` bytes each.

    Inserted norms are left out: less than a thousandth.
    """
    kind, matrices = config.kind, shape.layers * shape.layer_weights
    tables = 1 if shape.tied else 2
    rest = shape.embeddings + shape.layers * shape.layer_norms + shape.hidden
    if kind == "adamw_8bit":
        tensors = [*([rows * columns for rows, columns in shape.linears] * shape.layers)]
        tensors += [shape.vocabulary * shape.hidden] * tables
        large = sum(_eight_bits(numbers) for numbers in tensors)
        return large + 8.0 * (shape.layers * shape.layer_norms + shape.hidden)
    if kind in ("muon", "muonclip"):
        return float(size * (matrices + 2 * rest))
    if kind in ("apollo", "apollo_mini"):
        small = sum(_apollo(min(pair), max(pair), kind, config.apollo_rank) for pair in shape.linears)
        return 4.0 * shape.layers * small + 2.0 * size * rest
    return float(size * 2 * (matrices + rest))


def _high_points(
    recipe: Recipe, shape: Shape, weights: float, size: int, taught: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what is there at the end of a forward, and at the end of a backward."""
    accumulating = recipe.batch.accumulation > 1
    table = 4.0 * shape.vocabulary * shape.hidden
    tokens = recipe.batch.micro_batch * recipe.data.sequence_length
    chunk = 4.0 * min(chunk_tokens(shape.vocabulary), tokens) * shape.vocabulary
    # A step of several micro-batches holds its ternary weights to its end, and at a strength below 1 the blend too.
    held = float(size * shape.layers * shape.layer_weights) if accumulating else 0.0
    blended = held if recipe.strength.kind != "constant" else 0.0
    head = (_CHUNKS + (_TEACHERS_CHUNKS if taught else 0)) * chunk + table
    before = {
        "activations": activation_bytes(recipe, shape) + blended,
        "gradients": weights if accumulating else 0.0,
        "head": head,
    }
    after = {
        "activations": held + blended,
        "gradients": weights,
        "head": table if shape.tied else 0.0,  # the gradients of both uses of a tied table, before they are added
    }
    return before, after


def _teacher_size(recipe: Recipe) -> float:
    """Bytes of one of its parameters, in this process; as large as the student, for want of its configuration."""
    settings = recipe.teacher
    if not recipe.taught or settings.kind != "local":
        return 0.0
    full = 4.0 if (settings.dtype or recipe.model.dtype) == "float32" else 2.0
    return {"full": full, "int8": 1.0, "nf4": 0.5 + 2 / 64}[settings.weights]


def _subln(recipe: Recipe, shape: Shape) -> bool:
    return recipe.model.subln != "none" and not shape.own_sub_norms


def _eight_bits(numbers: int) -> float:
    """Two bytes for each number, two float32 maxima for each block; small tensors keep two float32 moments."""
    return 8.0 * numbers if numbers < _BNB_SMALL else 2.0 * numbers + 8.0 * -(-numbers // _BNB_BLOCK)


def _apollo(short: int, long: int, kind: str, rank: int | None) -> int:
    """Numbers for one matrix: two moments [r, n] and the projection [r, m]."""
    rank = 1 if kind == "apollo_mini" else max(1, short // 4) if rank is None else min(rank, short)
    return rank * (2 * long + short)
