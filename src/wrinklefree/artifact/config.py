"""The sizes of a decoder as its config.json states them, read under Hugging Face's names and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from wrinklefree.artifact.packing import LAYOUT, Layout, PackedShape
from wrinklefree.errors import FormatError

Activation = Literal["silu", "relu2", "gelu_pytorch_tanh"]
RopeKind = Literal["default", "linear", "llama3"]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "relu2")
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3")
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "bitnet", "gemma3_text")
ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")

_Choice = TypeVar("_Choice", bound=str)


@dataclass(frozen=True)
class Rope:
    """Rotary embedding. ``kind`` linear divides positions by ``factor``; llama3 also uses the three after it."""

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a decoder. ``max_position_embeddings`` is at most the sliding window, where there is one."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: Activation
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope: Rope

    @property
    def has_qk_norm(self) -> bool:
        """Whether queries and keys pass an RMSNorm over each head."""
        return self.model_type in ("qwen3", "gemma3_text")

    @property
    def has_sandwich_norms(self) -> bool:
        """Whether what attention and MLP return is normed before it is added."""
        return self.model_type == "gemma3_text"

    @property
    def has_sub_norms(self) -> bool:
        """Whether the family has norms before o_proj and down_proj of its own, SubLN or not."""
        return self.model_type == "bitnet"

    def linears(self, layout: Layout = LAYOUT) -> dict[str, PackedShape]:
        """Return every ternary layer's full name with its sizes, layer by layer."""
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes = {
            "q_proj": PackedShape(queries, hidden, layout),
            "k_proj": PackedShape(keys, hidden, layout),
            "v_proj": PackedShape(keys, hidden, layout),
            "o_proj": PackedShape(hidden, queries, layout),
            "gate_proj": PackedShape(inner, hidden, layout),
            "up_proj": PackedShape(inner, hidden, layout),
            "down_proj": PackedShape(hidden, inner, layout),
        }
        names = [f"self_attn.{name}" for name in ATTENTION_LINEARS] + [f"mlp.{name}" for name in MLP_LINEARS]
        return {
            f"model.layers.{layer}.{name}": shapes[name.split(".")[1]]
            for layer in range(self.num_hidden_layers)
            for name in names
        }


def parse_config(raw: Mapping[str, Any], place: str) -> ModelConfig:
    """Return the checked sizes of a config.json. Raises: FormatError naming ``place`` and the key."""
    fields = Fields(raw, place)
    heads = fields.size("num_attention_heads", 1 << 12)
    hidden = fields.size("hidden_size", 1 << 18)
    key_value_heads = fields.size("num_key_value_heads", heads, default=heads)
    if heads % key_value_heads:
        raise FormatError(f"{place}: {heads} query heads cannot share {key_value_heads} key-value heads")
    head_dim = fields.size("head_dim", 1 << 12, default=hidden // heads)
    if head_dim % 2:
        raise FormatError(f"{place}: head_dim: found {head_dim}, rotary embeddings need an even number")
    context = fields.size("max_position_embeddings", 1 << 27)
    model_type = fields.choice("model_type", MODEL_TYPES)
    gemma = model_type == "gemma3_text"
    return ModelConfig(
        model_type=model_type,
        vocab_size=fields.size("vocab_size", 1 << 24),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size", 1 << 20),
        num_hidden_layers=fields.size("num_hidden_layers", 1 << 12),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-12, 1.0),
        hidden_act=_gemma_activation(fields) if gemma else fields.choice("hidden_act", ACTIVATIONS),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        max_position_embeddings=context if gemma else min(context, _sliding_window(fields) or context),
        rope=_gemma_rope(fields) if gemma else _rope(fields),
    )


def _gemma_activation(fields: Fields) -> Activation:
    """Check what Gemma 3 has beside Llama's settings, and what the engine has no code for; return the activation."""
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if fields.raw.get(key) not in (None, False):
            raise fields.wrong(key, "no engine of ours computes it")
    fields.size("sliding_window", 1 << 24)
    fields.size("head_dim", 1 << 12)
    fields.number("query_pre_attn_scalar", 1, 1 << 20)
    kinds = fields.raw.get("layer_types")
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
        raise fields.wrong("layer_types", "full_attention or sliding_attention is needed for each layer")
    return fields.choice("hidden_activation", ("gelu_pytorch_tanh",))


def _gemma_rope(fields: Fields) -> Rope:
    """The rotary embedding of the full layers; that of the windowed ones, a second one, is checked."""
    ropes = Fields(fields.object("rope_parameters") or {}, f"{fields.place}: rope_parameters")
    full, _ = (
        _rope(Fields({"rope_parameters": ropes.object(kind) or {"rope_type": f"no {kind}"}}, ropes.place))
        for kind in ("full_attention", "sliding_attention")
    )
    return full


def _sliding_window(fields: Fields) -> int | None:
    """The window, when attention uses one. Within it, windowed and full attention are the same function."""
    if fields.raw.get("sliding_window") is None or fields.raw.get("use_sliding_window", True) is False:
        return None
    return fields.size("sliding_window", 1 << 27)


def _rope(fields: Fields) -> Rope:
    # transformers 5 writes `rope_parameters`; before that it was `rope_theta` beside `rope_scaling`.
    settings = fields.object("rope_parameters") or fields.object("rope_scaling") or {}
    settings = {"rope_theta": fields.raw.get("rope_theta", 10000.0), **settings}
    settings["rope_type"] = settings.get("rope_type") or settings.get("type") or "default"
    inner = Fields(settings, f"{fields.place}: rope_parameters")
    kind = inner.choice("rope_type", ROPE_KINDS)
    theta = inner.number("rope_theta", 1.0, 1e12)
    if kind == "default":
        return Rope(theta)
    factor = inner.number("factor", 1.0, 1e6)
    if kind == "linear":
        return Rope(theta, kind, factor)
    low = inner.number("low_freq_factor", 1e-6, 1e6)
    high = inner.number("high_freq_factor", 1e-6, 1e6)
    if high <= low:
        raise FormatError(f"{inner.place}: high_freq_factor {high} must exceed low_freq_factor {low}")
    return Rope(theta, kind, factor, low, high, inner.size("original_max_position_embeddings", 1 << 27))


@dataclass(frozen=True)
class Fields:
    """Typed reading of a JSON object; each method raises FormatError naming ``place``, the key and the value."""

    raw: Mapping[str, Any]
    place: str

    def size(self, key: str, most: int, default: int | None = None, least: int = 1) -> int:
        """Return an integer from ``least`` to ``most``; null counts as absent."""
        value = self.raw.get(key)
        value = default if value is None else value
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"an integer from {least} to {most} is needed")
        return value

    def number(self, key: str, least: float, most: float) -> float:
        """Return a number from ``least`` to ``most``."""
        value = self.raw.get(key)
        # The comparison also refuses NaN, and Python compares huge integers with floats exactly.
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.wrong(key, f"a number from {least} to {most} is needed")
        return float(value)

    def choice(self, key: str, allowed: tuple[_Choice, ...]) -> _Choice:
        """Return one of the ``allowed`` texts."""
        value = self.raw.get(key)
        for name in allowed:
            if value == name:
                return name
        raise self.wrong(key, f"allowed are {', '.join(allowed)}")

    def flag(self, key: str) -> bool:
        """Return true or false; absent is false."""
        value = self.raw.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false is needed")
        return value

    def text(self, key: str) -> str | None:
        """Return a text, or None where it is null or absent."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a text or null is needed")
        return value

    def object(self, key: str) -> dict[str, Any] | None:
        """Return an object, or None where it is null or absent."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object or null is needed")
        return value

    def wrong(self, key: str, needed: str) -> FormatError:
        """Return the error for a key whose value is not what is needed."""
        found = repr(self.raw[key])[:80] if key in self.raw else "nothing"
        return FormatError(f"{self.place}: {key}: found {found}, {needed}")
