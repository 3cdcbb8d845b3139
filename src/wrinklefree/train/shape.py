"""The sizes of a decoder, from its config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder: D ``hidden``, F ``width``, H ``heads`` and K ``keys`` of E ``head`` each.

    ``qk_norm``: queries and keys are normed. ``sandwich``: norms after attention and MLP too. ``full_scores``:
    attention keeps every score, because a cap on them has no fused form. ``labels``: of a classifier, 0 of others.
    ``converted``: ternary already, with or without inserted ``subln`` and with ``scale_group`` weights to each scale
    of its own (0: the scales follow from the weights).
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
    converted: bool = False
    subln: bool = False
    scale_group: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Return the shape that a config.json describes. Raises: KeyError, TypeError, ValueError when it does not."""
        kind, heads = config.get("model_type"), int(config["num_attention_heads"])
        bias = bool(config.get("attention_bias"))
        classifies = any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())
        ours: Mapping[str, Any] = config.get("wrinklefree") or {}
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
            converted=bool(ours),
            subln=ours.get("subln", "none") != "none",
            scale_group=int(ours["group_size"])
            if ours.get("calibration") and ours.get("granularity") == "group"
            else 0,
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
    def table(self) -> int:
        """Weights of the token table; of the head too."""
        return self.vocabulary * self.hidden

    @property
    def embeddings(self) -> int:
        """Weights of the token table and of the head, or of a classifier's rows instead of one."""
        heads = self.labels if self.labels else 0 if self.tied else self.vocabulary
        return (self.vocabulary + heads) * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters, without inserted SubLN and learned scales."""
        return self.layers * (self.layer_weights + self.layer_norms) + self.embeddings + self.hidden
