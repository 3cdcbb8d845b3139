"""A plain NumPy forward pass of a packed directory: slow, readable, the standard the engine is compared with.

Written from config.json's meaning and artifact/packing.py alone; it shares no code with the C++ runtime. float32
where the engine computes float32; keys and values pass through the cache's type. Shapes: T tokens, D hidden,
H query heads, K key-value heads, d head_dim, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from wrinklefree.artifact.packing import unpack_codes, unpack_group_scales
from wrinklefree.artifact.tables import unpack_table

Array = NDArray[Any]


class ReferenceModel:
    """The whole model unpacked to float arrays. ``dtype`` float32, or float64 to see what rounding contributes."""

    def __init__(self, directory: Path, kv_dtype: Any = np.float16, dtype: Any = np.float32) -> None:
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self.tensors = load_file(directory / "model.safetensors")
        self.kv_dtype = kv_dtype
        self.dtype = dtype
        self.block = 1  # positions of a block whose queries see all of it; 1: causal
        self.first_tie = 0
        self.head_slack: Array = np.zeros(0)
        c = self.config
        self.heads = c["num_attention_heads"]
        self.kv_heads = c["num_key_value_heads"]
        self.head_dim = c.get("head_dim") or c["hidden_size"] // self.heads
        self.widths = {
            "q_proj": (self.heads * self.head_dim, c["hidden_size"]),
            "k_proj": (self.kv_heads * self.head_dim, c["hidden_size"]),
            "v_proj": (self.kv_heads * self.head_dim, c["hidden_size"]),
            "o_proj": (c["hidden_size"], self.heads * self.head_dim),
            "gate_proj": (c["intermediate_size"], c["hidden_size"]),
            "up_proj": (c["intermediate_size"], c["hidden_size"]),
            "down_proj": (c["hidden_size"], c["intermediate_size"]),
        }

    def logits(self, tokens: list[int]) -> Array:
        """Return float logits [T, V] of a whole sequence.

        Sets ``first_tie`` (see record_ties; T when none) and ``head_slack`` [T] (see head_input; 0 for float16 heads).
        """
        self.head_slack = np.zeros(len(tokens))
        normed = self.hidden(tokens)
        head = "lm_head" if "lm_head.weight" in self.tensors else "model.embed_tokens"
        weight = self.table(head)
        return (
            normed if self.tensors[head + ".weight"].dtype == np.float16 else self.head_input(normed, weight)
        ) @ weight.T

    def hidden(self, tokens: list[int]) -> Array:
        """Return the states behind the last norm [T, D] of a whole sequence; sets ``first_tie``."""
        self.first_tie = len(tokens)
        gemma = self.config["model_type"] == "gemma3_text"
        x = self.table("model.embed_tokens")[tokens]
        if gemma:
            x = x * self.dtype(np.sqrt(self.config["hidden_size"]))
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            added = self.attention(prefix, self.norm(x, prefix + "input_layernorm"), layer)
            x = x + (self.norm(added, prefix + "post_attention_layernorm") if gemma else added)
            before = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
            added = self.mlp(prefix + "mlp.", self.norm(x, prefix + before))
            x = x + (self.norm(added, prefix + "post_feedforward_layernorm") if gemma else added)
        return self.norm(x, "model.norm")

    def head_input(self, x: Array, weight: Array) -> Array:
        """The input of a quantised head, rounded to 15 bits of each token's peak.

        The 0.02 nearest to a rounding tie (1e-6 of the peak, in steps of 1 / 16256) may be rounded the other way by an
        engine whose float32 sums are ordered differently; ``head_slack`` is what that can change a token's logits by.
        """
        peak = np.maximum(np.abs(x).max(axis=-1, keepdims=True), self.dtype(1e-5))
        scaled = x * (self.dtype(16256) / peak)
        step = peak / self.dtype(16256)
        near = np.abs(np.abs(scaled - np.floor(scaled)) - 0.5) < 0.02
        self.head_slack = (near * step) @ np.abs(weight).max(axis=0)
        return np.rint(scaled) * step

    def table(self, name: str) -> Array:
        """The embedding or head [V, D]."""
        weight = self.tensors[name + ".weight"]
        scale = self.tensors.get(name + ".weight_scale")
        if scale is None:
            return weight.astype(self.dtype)
        sizes = self.config["vocab_size"], self.config["hidden_size"]
        return unpack_table(weight, scale, *sizes, self.config["wrinklefree"]["embedding"]).values().astype(self.dtype)

    def norm(self, x: Array, name: str) -> Array:
        """RMSNorm over the last axis. Source: arXiv 1910.07467, equation 4."""
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        epsilon = self.tensors[name + ".eps"][0] if name + ".eps" in self.tensors else self.config["rms_norm_eps"]
        return x / np.sqrt(mean_square + self.dtype(epsilon)) * self.tensors[name + ".weight"]

    def linear(self, name: str, x: Array) -> Array:
        """A ternary linear [T, O] of x [T, I]: per-token absmax int8 activations, exact integer products.

        Its low-rank correction, if it has one, sees x before that rounding.
        """
        rows, columns = self.widths[name.rsplit(".", 1)[1]]
        ternary = unpack_codes(
            self.tensors[name + ".weight"], rows, columns, self.config["wrinklefree"]["layout"]
        ).astype(np.int64)
        peak = np.maximum(np.abs(x).max(axis=-1, keepdims=True), self.dtype(1e-5))
        scaled = x * (self.dtype(127) / peak)
        codes = np.rint(scaled).astype(np.int64)
        self.record_ties(scaled)
        scale = self.tensors[name + ".weight_scale"]
        if scale.dtype == np.float16:
            group_size = self.config["wrinklefree"]["group_size"]
            scales = unpack_group_scales(scale, rows).astype(self.dtype)  # [O, G]
            out = np.zeros((len(x), rows), self.dtype)
            for g in range(scales.shape[1]):
                part = slice(g * group_size, (g + 1) * group_size)
                out += (codes[:, part] @ ternary[:, part].T).astype(self.dtype) * scales[:, g]
        else:
            out = (codes @ ternary.T).astype(self.dtype) * scale
        out = out * (peak / self.dtype(127))
        bias = self.tensors.get(name + ".bias")
        out = out if bias is None else out + bias
        if name + ".low_rank_u" in self.tensors:
            u, v = (self.tensors[f"{name}.low_rank_{factor}"].astype(self.dtype) for factor in "uv")
            out = out + (x @ v.T) @ u.T
        return out

    def record_ties(self, scaled: Array) -> None:
        """Remember the first token with a code so near to a rounding tie that float32 sums decide it.

        A value is a sum of terms of the size of the row's peak (127 here), of which float32 keeps 2^-24 each; 3e-5 is
        four such roundings, and the value's own rounding comes on top.
        """
        distance = np.abs(np.abs(scaled - np.floor(scaled)) - 0.5)
        near = (distance < 3e-5 + 2e-6 * np.abs(scaled)).any(axis=-1)
        if near.any():
            self.first_tie = min(self.first_tie, int(np.argmax(near)))

    def attention(self, prefix: str, x: Array, layer: int) -> Array:
        """Grouped-query attention [T, D], causal or by blocks, with half-rotation rotary embedding."""
        name = prefix + "self_attn."
        tokens = len(x)
        q = self.linear(name + "q_proj", x).reshape(tokens, self.heads, self.head_dim)
        k = self.linear(name + "k_proj", x).reshape(tokens, self.kv_heads, self.head_dim)
        v = self.linear(name + "v_proj", x).reshape(tokens, self.kv_heads, self.head_dim)
        if name + "q_norm.weight" in self.tensors:
            q, k = self.norm(q, name + "q_norm"), self.norm(k, name + "k_norm")
        q, k = self.rotate(q, layer), self.rotate(k, layer)
        k, v = (a.astype(self.kv_dtype).astype(self.dtype) for a in (k, v))
        group = self.heads // self.kv_heads
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(
            self.dtype(self.config.get("query_pre_attn_scalar", self.head_dim))
        )
        scores = np.where(self.visible(tokens, layer), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out = np.einsum("hqk,khd->qhd", weights, v).reshape(tokens, -1)
        if name + "attn_sub_norm.weight" in self.tensors:
            out = self.norm(out, name + "attn_sub_norm")
        return self.linear(name + "o_proj", out)

    def visible(self, tokens: int, layer: int) -> Array:
        """Which keys each query sees [T, T]: itself and before, at most ``sliding_window`` of them; or its block."""
        query, key = np.arange(tokens)[:, None], np.arange(tokens)[None, :]
        if self.block > 1:
            return key < (query // self.block + 1) * self.block
        window = self.config.get("sliding_window")
        types = self.config.get("layer_types")
        full = types[layer] == "full_attention" if types else self.config["model_type"] != "mistral"
        if full or not window:
            return key <= query
        return (key <= query) & (key > query - window)

    def rotate(self, x: Array, layer: int) -> Array:
        """Rotary embedding of x [T, heads, d]: (a, b) -> (a cos - b sin, b cos + a sin), a and b the two halves.

        Source: arXiv 2104.09864, section 3.4.2; half-rotation pairing as in Hugging Face's Llama.
        """
        angles = np.arange(len(x), dtype=np.float32)[:, None] * self.frequencies(layer)
        cos, sin = (f(angles).astype(self.dtype)[:, None, :] for f in (np.cos, np.sin))
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def frequencies(self, layer: int) -> Array:
        """Radians a position float32 [d / 2], with the scaling config.json asks for (by kind of layer in Gemma 3)."""
        rope = self.config.get("rope_parameters") or {}
        if "full_attention" in rope:
            rope = rope[self.config["layer_types"][layer]]
        theta = rope.get("rope_theta", self.config.get("rope_theta", 10000.0))
        # float32 where transformers rounds to float32: at position 1000 one rounding more is an angle of 1e-4
        exponent = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        frequency = np.float32(1) / (theta ** exponent.astype(np.float64)).astype(np.float32)
        kind = rope.get("rope_type", "default")
        if kind == "linear":
            frequency = frequency / rope["factor"]
        elif kind == "llama3":
            # arXiv 2407.21783: long waves stretched, short ones kept, a linear blend between
            wavelength = 2 * np.pi / frequency
            original = rope["original_max_position_embeddings"]
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            blend = np.clip((original / wavelength - low) / (high - low), 0, 1)
            frequency = (1 - blend) * frequency / rope["factor"] + blend * frequency
        else:
            assert kind == "default"
        return frequency.astype(np.float32)

    def mlp(self, prefix: str, x: Array) -> Array:
        """Gated feed-forward [T, D]."""
        gate, up = self.linear(prefix + "gate_proj", x), self.linear(prefix + "up_proj", x)
        if self.config["hidden_act"] == "relu2":
            inner = np.maximum(gate, 0) ** 2 * up
        elif self.config.get("hidden_activation") == "gelu_pytorch_tanh":
            # arXiv 1606.08415, section 2
            inner = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi).astype(self.dtype) * (gate + 0.044715 * gate**3))) * up
        else:
            inner = gate / (1 + np.exp(-gate)) * up
        if prefix + "ffn_sub_norm.weight" in self.tensors:
            inner = self.norm(inner, prefix + "ffn_sub_norm")
        return self.linear(prefix + "down_proj", inner)
