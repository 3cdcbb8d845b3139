"""What a recipe will take, before anything is loaded: parameters, steps, memory. Reads a config, no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrinklefree.errors import FormatError
from wrinklefree.objectives.head import chunk_tokens
from wrinklefree.train.recipe import Recipe

_GIB = 2.0**30
# Float32 values that a decoder layer keeps for the backward, in units of tokens x hidden size: norms, projections,
# rotary copies, residuals (about 20), plus 6 times the ratio of the MLP's width to the hidden size.
_KEPT_PER_LAYER, _KEPT_PER_MLP = 20, 6


@dataclass(frozen=True)
class DryRun:
    """Sizes of a run. ``parameters`` is None when the source's configuration is not on this machine."""

    resolved: dict[str, Any]
    parameters: int | None
    step_tokens: int
    steps: int | None
    total_tokens: int | None
    memory_gib: dict[str, float]

    def lines(self) -> list[str]:
        """Return the figures for a reader, each with what it follows from."""
        batch, data, devices = self.resolved["batch"], self.resolved["data"], self.resolved["device"]["devices"]
        count = f"{self.parameters:,}" if self.parameters else "unknown: the source is not on this machine"
        lines = [
            f"parameters      {count}",
            f"tokens per step {self.step_tokens:,} = {batch['micro_batch']} sequences x {batch['accumulation']} "
            f"accumulated x {devices} processes x {data['sequence_length']} tokens",
            f"steps           {'until the time is up' if self.steps is None else f'{self.steps:,}'}",
        ]
        if self.memory_gib:
            parts = ", ".join(f"{name} {size:.2f}" for name, size in self.memory_gib.items())
            lines.append(f"memory (GiB)    {sum(self.memory_gib.values()):.2f} for each process: {parts}")
        return lines


def dry_run(recipe: Recipe) -> DryRun:
    """Return what ``recipe`` resolves to and takes; nothing is loaded or downloaded.

    Raises: FormatError when the source's config.json is damaged.
    """
    config = _config(recipe.model.source)
    parameters = count_parameters(config) if config else None
    return DryRun(
        resolved=recipe.resolved(),
        parameters=parameters,
        step_tokens=recipe.step_tokens,
        steps=recipe.steps,
        total_tokens=recipe.run_budget.tokens,
        memory_gib=_memory(recipe, config, parameters) if config and parameters else {},
    )


def count_parameters(config: dict[str, Any]) -> int:
    """Return the parameters of a model of a known family from its config.json (without inserted SubLN)."""
    kind = config.get("model_type")
    hidden, width = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or hidden // heads)
    keys = int(config.get("num_key_value_heads") or heads)
    attention = 2 * hidden * head * (heads + keys)
    if config.get("attention_bias") or kind == "qwen2":
        attention += head * (heads + 2 * keys) + (hidden if config.get("attention_bias") else 0)
    if kind in ("qwen3", "gemma3_text"):
        attention += 2 * head
    norms = (4 if kind in ("gemma2", "gemma3_text") else 2) * hidden + (hidden + width if kind == "bitnet" else 0)
    biases = 2 * width + hidden if config.get("mlp_bias") else 0
    layer = attention + 3 * hidden * width + biases + norms
    classifies = any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())
    embeddings = int(config["vocab_size"]) * hidden * (1 if classifies or config.get("tie_word_embeddings") else 2)
    embeddings += len(config.get("id2label") or ()) * hidden if classifies else 0
    return int(config["num_hidden_layers"]) * layer + embeddings + hidden


def _config(source: str | None) -> dict[str, Any] | None:
    path = Path(source or "") / "config.json"
    if not source or not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        count_parameters(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: cannot be used as a model configuration ({error})") from error
    assert isinstance(config, dict)
    return config


def _teacher_size(recipe: Recipe) -> float:
    """Bytes of one of its parameters, in this process; as large as the student, for want of its configuration."""
    settings = recipe.teacher
    if not recipe.taught or settings.kind != "local":
        return 0.0
    full = 4.0 if (settings.dtype or recipe.model.dtype) == "float32" else 2.0
    return {"full": full, "int8": 1.0, "nf4": 0.5 + 2 / 64}[settings.weights]


def _memory(recipe: Recipe, config: dict[str, Any], parameters: int) -> dict[str, float]:
    """An estimate, to within about a third: enough to choose a machine or a micro-batch."""
    size = 4 if recipe.model.dtype == "float32" else 2
    tokens = recipe.batch.micro_batch * recipe.data.sequence_length
    hidden, width, layers = (int(config[k]) for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    kept = tokens * layers * (hidden * _KEPT_PER_LAYER + width * _KEPT_PER_MLP) * size
    vocabulary = int(config["vocab_size"])
    teacher = _teacher_size(recipe)
    sizes = {
        "weights": parameters * size,
        "gradients": parameters * size,
        "optimizer": parameters * size * 2,
        "teacher": parameters * teacher,
        "activations": kept,
        # Student and teacher logits of a chunk, their softmaxes and gradient; the head's float32 gradient.
        "head": 6 * 4 * min(chunk_tokens(vocabulary), tokens) * vocabulary + 4 * vocabulary * hidden,
    }
    return {name: value / _GIB for name, value in sizes.items()}
