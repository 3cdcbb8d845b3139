"""How much memory a recipe's steps take, from configurations alone; `benchmarks/plan_memory.py` measures it.

What stays all the time: weights, optimizer state, a teacher. What comes and goes has three high points, and the
highest counts: a teacher being loaded; the end of a forward, when all activations are kept and the head works; the end
of a backward, when all gradients are there.
"""

from __future__ import annotations

from dataclasses import dataclass

from wrinklefree.objectives.attention_relation import AttentionRelation
from wrinklefree.objectives.base import CLEAN, AnalyticObjective, LogitObjective
from wrinklefree.objectives.head import chunk_tokens
from wrinklefree.objectives.layerwise import Layerwise
from wrinklefree.objectives.noise import DRAFTS, NOISED_VIEW
from wrinklefree.optim.build import OptimizerConfig
from wrinklefree.train.recipe import Recipe
from wrinklefree.train.shape import Shape

# Bytes of the interpreter with its libraries on a CPU (measured), and of a CUDA context with its kernels (assumed).
CPU_RUNTIME, CUDA_RUNTIME = 0.52 * 2**30, 0.6 * 2**30
# Chunks of logits alive at once in the head: the student's and their gradient, and the teacher's. An objective that
# is differentiated by autograd keeps as many again for its graph.
_CHUNKS, _TEACHERS_CHUNKS, _GRAPH_CHUNKS = 2, 1, 4
# Of the rest, what the allocator cannot hand out again; measured.
_FRAGMENTS = 0.05
# glibc's largest threshold: tensors from this size on have pages of their own, which go back when they are freed.
_MAPPED = 32 * 2**20
_BNB_RUNTIME = 0.12 * 2**30  # bitsandbytes' own libraries
# Tensors of the hidden size that are kept beside the layers'.
_OUTSIDE = 2.0
# In the backward of one layer, beside what it kept: gradients of the MLP's width.
_BACKWARD_WIDTHS = 3.0
# Numbers for each token, layer and hidden unit that a layer-wise metric keeps, beside the teacher's own state.
_LAYERWISE = {"mse_normalized": 4.0, "cosine": 4.0, "inner_product": 4.0, "mse": 2.0, "kl": 2.0}
# Tables of token by token that attention relations of Q, K and V keep, teacher and student together.
_RELATION = 12.0
_BNB_SMALL, _BNB_BLOCK = 4096, 256


@dataclass(frozen=True)
class View:
    """What one forward of the student sees: ``rows`` of ``length`` positions; ``predicted`` go through the head."""

    rows: int
    length: int
    predicted: int

    @property
    def positions(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Point:
    """What comes and goes at one point of a step, in bytes by part; ``mapped`` of them is not on the heap."""

    parts: dict[str, float]
    mapped: float

    @property
    def heap(self) -> float:
        return sum(self.parts.values()) - self.mapped


def memory_bytes(recipe: Recipe, shape: Shape, gpu: bool = False, teacher: Shape | None = None) -> dict[str, float]:
    """Return bytes of one process at a step's high point, by part; sharded parts are divided among the processes.

    ``teacher``: the local teacher's shape, None for the student's own. ``retained``, on a CPU: the C library is told
    to keep what is freed (`train.memory`), so that the heap stays as large as it ever was; tensors of 32 MiB and more
    are not on it, and add their own highest sum.
    """
    shards = _shards(recipe)
    points = high_points(recipe, shape, teacher or shape, gpu)
    highest = max(points, key=lambda point: sum(point.parts.values()))
    parts = {
        "weights": student_bytes(recipe, shape) / shards,
        "optimizer": optimizer_bytes(recipe.optimizer, shape, _size(recipe), recipe) / shards,
        "teacher": teacher_bytes(recipe, teacher or shape),
        **highest.parts,
    }
    if not gpu:
        most = max(point.heap for point in points) + max(point.mapped for point in points)
        parts["retained"] = most - sum(highest.parts.values())
    runtime = CUDA_RUNTIME if gpu else CPU_RUNTIME + (_BNB_RUNTIME if recipe.optimizer.kind == "adamw_8bit" else 0.0)
    return {**parts, "fragments": _FRAGMENTS * sum(parts.values()), "runtime": runtime}


def high_points(recipe: Recipe, shape: Shape, teacher: Shape, gpu: bool = False) -> tuple[Point, ...]:
    """Return what comes and goes: at the end of a forward, at the end of a backward, and while a teacher loads."""
    size, shards = _size(recipe), _shards(recipe)
    gradients = trained_bytes(recipe, shape) / shards
    accumulated = gradients if recipe.batch.accumulation > 1 else 0.0
    learns_table = _learns_tables(recipe)
    table = float(size * shape.table / shards) if learns_table else 0.0
    held, gathered = held_bytes(recipe, shape), gathered_bytes(recipe, shape)
    activations = activation_bytes(recipe, shape)
    # What works for a moment: the head on its chunks, or later the objectives on states and the first layer's backward.
    chunks, states = chunk_bytes(recipe, shape), objective_bytes(recipe, shape, teacher)
    of_head, narrow = head_bytes(recipe, shape), _narrow_bytes(recipe, shape)
    later = max(states + backward_bytes(recipe, shape) - chunks - narrow, 0.0)
    forward = {
        "activations": activations + held,
        "gradients": accumulated,
        "head": of_head + chunks + narrow,
        "objectives": later,
        "gathered": gathered,
    }
    # The gradients of both uses of a tied table, before they are added; or the optimizer's largest tensor.
    twice = table if shape.tied and not shape.labels else 0.0
    update = _update_bytes(recipe.optimizer, shape, gpu) if learns_table else 0.0
    backward = {
        "activations": held,
        "gradients": gradients,
        "head": max(twice, update),
        "objectives": 0.0,
        "gathered": gathered,
    }
    large = 4.0 * shape.table >= _MAPPED
    wide = 4.0 * shape.width * max(view.positions for view in views(recipe)) >= _MAPPED
    in_forward = (of_head + narrow + (table if accumulated else 0.0)) * large + activations * wide
    in_backward = (table + (update if update > twice and recipe.optimizer.kind == "adamw_8bit" else twice)) * large
    points = (Point(forward, in_forward), Point(backward, in_backward))
    if recipe.teacher.weights == "full" or not _has_teacher(recipe):
        return points
    # Each matrix is there in full until its bits are reduced: nothing else is, but for the weights and the state.
    whole = teacher_bytes(recipe, teacher, whole=True) - teacher_bytes(recipe, teacher)
    return (*points, Point(dict.fromkeys(forward, 0.0) | {"loading": whole}, 0.0))


def views(recipe: Recipe, micro_batch: int | None = None) -> list[View]:
    """Return the student's forwards that are differentiated, for one micro-batch."""
    rows, length = micro_batch or recipe.batch.micro_batch, recipe.data.sequence_length
    asked = {term.objective.needs.view for term in recipe.objectives.values()}
    found = [View(rows, length, rows * length)] if CLEAN in asked or not asked else []
    if NOISED_VIEW in asked:
        settings = recipe.diffusion
        number = rows * settings.num_views
        # A document's last block is filled up; one block for each row, for want of the documents' lengths.
        filled = length + (settings.block_size if settings.block_size and settings.whole_blocks else 0)
        width = filled + (length if settings.block_size is not None else 0)
        found.append(View(number, width, rows * length))
    return found


def activation_bytes(recipe: Recipe, shape: Shape, micro_batch: int | None = None) -> float:
    """Return the bytes that the forwards of a micro-batch keep for their backward, ternary weights included."""
    total = 0.0
    for view in views(recipe, micro_batch):
        kept = 4.0 * view.positions * shape.hidden if recipe.device.gradient_checkpointing else None
        total += shape.layers * (layer_bytes(recipe, shape, view) if kept is None else kept)
        # The final norm's input and output, and the embedded tokens.
        total += _OUTSIDE * 4.0 * view.positions * shape.hidden
    return total


def layer_bytes(recipe: Recipe, shape: Shape, view: View) -> float:
    """Return the bytes one decoder layer keeps: counted on toys with `torch.autograd.graph.saved_tensors_hooks`.

    In float32, numbers for each token: 6 hidden, 6 width, 6 queries (of them 2 width and 1 query for SubLN), 4 hidden
    more for norms after the blocks, 2 queries and 2 keys for QK-norm; and the mask, and the weights as they were used.
    In bfloat16 about half of each, but norms, which are computed in float32.
    """
    queries, keys = shape.heads * shape.head, shape.keys * shape.head
    hidden = 6.0 + (4.0 if shape.sandwich else 0.0)
    width, query = (6.0, 6.0) if has_subln(recipe, shape) or shape.own_sub_norms else (4.0, 5.0)
    query, key = (query + 2.0, 2.0) if shape.qk_norm else (query, 0.0)
    if recipe.low_rank.init != "none" and recipe.low_rank.trainable == "all":
        hidden, width, query = hidden + 2.0, width + 1.0, query + 1.0  # the factors read what was not rounded
    blended = recipe.strength.kind != "constant"
    # Learned scales keep the rounded value in float32, and the blend with the latents beside it.
    learned = 4.0 if shape.scale_group else 0.0
    score, linear = 4.0, 4.0 + (learned if blended else 0.0)
    if recipe.model.dtype == "bfloat16":
        hidden, width, query, key, score, linear = 0.6 * hidden, 0.53 * width, 0.6 * query, 0.6 * key, 2.0, 2.2
    elif recipe.device.precision == "bf16-mixed":
        hidden, width, query, key, score, linear = 1.1 * hidden, 0.58 * width, 0.65 * query, 0.65 * key, 2.0, 2.2
        linear += learned
    wide = recipe.device.precision == "32-true" and recipe.model.dtype == "float32"
    if wide and not recipe.model.convert:
        linear = 0.0  # the parameters themselves
    elif wide and held_bytes(recipe, shape):
        linear -= 4.0  # the same as what is held for the step
    token = hidden * shape.hidden + width * shape.width + query * queries + key * keys + shape.heads + 4
    scores = score * view.length * (2.0 * shape.heads if shape.full_scores else 1.0)
    return view.positions * (4.0 * token + scores) + linear * shape.layer_weights


def held_bytes(recipe: Recipe, shape: Shape) -> float:
    """Return the bytes of the ternary weights that a step of several micro-batches keeps to its end.

    At a strength below 1 the blend with the latents is kept too. A sharded student keeps none.
    """
    sharded = recipe.device.strategy == "fsdp" and recipe.device.processes > 1
    if recipe.batch.accumulation == 1 or sharded or not recipe.model.convert or not recipe.device.holds_codes:
        return 0.0
    return float(_size(recipe) * shape.layers * shape.layer_weights) * (1 + (recipe.strength.kind != "constant"))


def head_bytes(recipe: Recipe, shape: Shape) -> float:
    """Return the bytes that the head keeps for the backward: gradients of its inputs and, in float32, of its weight.

    Each selection of tokens (the clean ones, the masked ones) goes through the head on its own.
    """
    if shape.labels:
        return 0.0
    predicted = max((view.predicted for view in views(recipe)), default=0)
    learned = _on_logits(recipe) if _learns_tables(recipe) else ()
    tables = len({(term.needs.view, term.needs.rows) for term in learned})
    tables += tables > 1  # their sum
    return 4.0 * tables * shape.table + 4.0 * shape.hidden * predicted * (3.0 if recipe.taught else 2.0)


def chunk_bytes(recipe: Recipe, shape: Shape) -> float:
    """Return the bytes of the head's chunks of logits."""
    terms = _on_logits(recipe)
    if not terms or shape.labels:
        return 0.0
    predicted = max(view.predicted for view in views(recipe))
    chunk = 4.0 * min(chunk_tokens(shape.vocabulary), predicted) * shape.vocabulary
    shown = recipe.teacher.answers is None  # or the teacher gives few tokens instead of states
    taught = any((term.needs.teacher and shown) or term.needs.rows == DRAFTS for term in terms)
    chunks = float(_CHUNKS) + (_TEACHERS_CHUNKS if taught else 0)
    chunks += 0.0 if all(isinstance(term, AnalyticObjective) for term in terms) else _GRAPH_CHUNKS
    if recipe.device.precision == "bf16-mixed" or recipe.model.dtype == "bfloat16":
        chunks += 0.5  # their gradient once more, in bfloat16
    return chunks * chunk


def _narrow_bytes(recipe: Recipe, shape: Shape) -> float:
    """The head's weight in the narrow type of mixed precision, and a chunk's part of its gradient."""
    return 4.0 * shape.table if recipe.device.precision == "bf16-mixed" and _on_logits(recipe) else 0.0


def backward_bytes(recipe: Recipe, shape: Shape) -> float:
    """Return the bytes of gradients in the backward of one layer, and of the layer when it is computed again."""
    view = max(views(recipe), key=lambda view: view.positions)
    again = layer_bytes(recipe, shape, view) if recipe.device.gradient_checkpointing else 0.0
    return 4.0 * _BACKWARD_WIDTHS * shape.width * view.positions + again


def _on_logits(recipe: Recipe) -> list[LogitObjective]:
    return [term.objective for term in recipe.objectives.values() if isinstance(term.objective, LogitObjective)]


def objective_bytes(recipe: Recipe, shape: Shape, teacher: Shape) -> float:
    """Return the bytes that objectives on states keep: hidden states of both models, relations of one layer."""
    rows, length = recipe.batch.micro_batch, recipe.data.sequence_length
    tokens = rows * length
    total = 4.0 * tokens * teacher.hidden if _has_teacher(recipe) else 0.0
    for term in recipe.objectives.values():
        objective = term.objective
        if isinstance(objective, Layerwise):
            theirs = 4.0 if _teacher_size(recipe) == 4.0 else 2.0
            total += teacher.layers * tokens * (theirs + 4.0 * _LAYERWISE[objective.metric]) * shape.hidden
        elif isinstance(objective, AttentionRelation):
            blocks = objective.needs.view == NOISED_VIEW
            seen = recipe.diffusion.num_views * rows if blocks else rows
            total += 4.0 * _RELATION * seen * objective.relation_heads * length**2
    return total


def student_bytes(recipe: Recipe, shape: Shape) -> float:
    """Return the bytes of all of the student's parameters: inserted norms, learned scales and low-rank factors too."""
    numbers = shape.parameters + _sub_norms(recipe, shape) + _factors(recipe, shape)
    return float(_size(recipe) * numbers + 4 * _scales(shape))


def trained_bytes(recipe: Recipe, shape: Shape) -> float:
    """Return the bytes of the gradients of all that is trained."""
    if _only_factors(recipe):
        return float(_size(recipe) * _factors(recipe, shape))
    still = 0.0 if _learns_tables(recipe) else float(_size(recipe) * shape.embeddings)
    return student_bytes(recipe, shape) - still


def teacher_bytes(recipe: Recipe, teacher: Shape, whole: bool = False) -> float:
    """Return the bytes of a local teacher; its matrices may be kept in fewer bits, its tables are not.

    ``whole``: before its bits are reduced. A teacher is an original model, also when ``teacher`` is the shape of the
    checkpoint that was made of it.
    """
    if not _has_teacher(recipe):
        return 0.0
    full = _teacher_size(recipe)
    matrices = teacher.layers * teacher.layer_weights
    each = {"full": full, "int8": 1.0, "nf4": 0.5 + 2 / 64}["full" if whole else recipe.teacher.weights]
    return each * matrices + full * (teacher.parameters - matrices)


def optimizer_bytes(config: OptimizerConfig, shape: Shape, size: int, recipe: Recipe | None = None) -> float:
    """Return the bytes of an optimizer's state (and APOLLO's projections) for parameters of ``size`` bytes each.

    ``recipe``: for what it adds to the parameters, or leaves out.
    """
    kind, linears = config.kind, list(shape.linears)
    tables, rest = shape.embeddings, shape.layers * shape.layer_norms + shape.hidden
    scales = 0
    if recipe is not None:
        scales, rest = _scales(shape), rest + _sub_norms(recipe, shape)
        factors = [pair for pair in _factor_matrices(recipe, shape)]
        if _only_factors(recipe):
            linears, tables, rest, scales = factors, 0, 0, 0
        else:
            linears += factors
            tables = tables if _learns_tables(recipe) else 0
    matrices = shape.layers * sum(rows * columns for rows, columns in linears)
    others = size * 2 * (tables + rest) + 8.0 * scales
    if kind == "adamw_8bit":
        tensors = [rows * columns for rows, columns in linears] * shape.layers
        tensors += [shape.table] * (tables // shape.table)
        return sum(_eight_bits(numbers) for numbers in tensors) + 8.0 * (rest + scales + tables % shape.table)
    if kind in ("muon", "muonclip"):
        return size * matrices + others
    if kind in ("apollo", "apollo_mini"):
        small = sum(_apollo(min(pair), max(pair), kind, config.apollo_rank) for pair in linears)
        return 4.0 * shape.layers * small + others
    return size * 2 * matrices + others


def gathered_bytes(recipe: Recipe, shape: Shape) -> float:
    """Return the bytes of a sharded student that are whole in every process: the tables, and a layer with the next."""
    if _shards(recipe) == 1:
        return 0.0
    layer = shape.layer_weights + shape.layer_norms
    return float(_size(recipe)) * (shape.embeddings + shape.hidden + 2 * layer) + 4.0 * shape.table


def has_subln(recipe: Recipe, shape: Shape) -> bool:
    """Return whether norms are, or will be, inserted into the student."""
    if shape.converted:
        return shape.subln
    return recipe.model.convert and recipe.model.subln != "none" and not shape.own_sub_norms


def _size(recipe: Recipe) -> int:
    return 4 if recipe.model.dtype == "float32" else 2


def _shards(recipe: Recipe) -> int:
    return recipe.device.processes if recipe.device.strategy == "fsdp" else 1


def _has_teacher(recipe: Recipe) -> bool:
    return recipe.taught and recipe.teacher.kind == "local"


def _teacher_size(recipe: Recipe) -> float:
    return 4.0 if (recipe.teacher.dtype or recipe.model.dtype) == "float32" else 2.0


def _sub_norms(recipe: Recipe, shape: Shape) -> int:
    return shape.layers * (shape.heads * shape.head + shape.width) if has_subln(recipe, shape) else 0


def _scales(shape: Shape) -> int:
    if not shape.scale_group:
        return 0
    return shape.layers * sum(rows * -(-columns // shape.scale_group) for rows, columns in shape.linears)


def _factor_matrices(recipe: Recipe, shape: Shape) -> list[tuple[int, int]]:
    """Outputs and inputs of the low-rank factors of one layer."""
    if recipe.low_rank.init == "none":
        return []
    rank, found = recipe.low_rank.rank, []
    for rows, columns in shape.linears:
        most = min(rows, columns)
        own = min(most, max(1, int(rank * most)) if rank < 1.0 else int(rank))
        found += [(rows, own), (own, columns)]
    return found


def _factors(recipe: Recipe, shape: Shape) -> int:
    return shape.layers * sum(rows * columns for rows, columns in _factor_matrices(recipe, shape))


def _only_factors(recipe: Recipe) -> bool:
    return recipe.low_rank.init != "none" and recipe.low_rank.trainable == "factors"


def _learns_tables(recipe: Recipe) -> bool:
    """Whether embeddings and head are trained."""
    return not _only_factors(recipe) and recipe.optimizer.embedding_lr > 0.0


def _update_bytes(config: OptimizerConfig, shape: Shape, gpu: bool) -> float:
    """What an optimizer takes while it updates its largest tensor: Newton-Schulz iterates, APOLLO's wide copies; on a
    CPU, where bitsandbytes has no fused kernel, float32 copies of both moments, the gradient and their quotient."""
    if config.kind == "adamw_8bit":
        return 0.0 if gpu else 24.0 * max(shape.table, *(rows * columns for rows, columns in shape.linears))
    if config.kind not in ("muon", "muonclip", "apollo", "apollo_mini"):
        return 0.0
    return 16.0 * max(rows * columns for rows, columns in shape.linears)


def _eight_bits(numbers: int) -> float:
    """Two bytes for each number, two float32 maxima for each block; small tensors keep two float32 moments."""
    return 8.0 * numbers if numbers < _BNB_SMALL else 2.0 * numbers + 8.0 * -(-numbers // _BNB_BLOCK)


def _apollo(short: int, long: int, kind: str, rank: int | None) -> int:
    """Numbers for one matrix: two moments [r, n] and the projection [r, m]."""
    rank = 1 if kind == "apollo_mini" else max(1, short // 4) if rank is None else min(rank, short)
    return rank * (2 * long + short)
