"""The architectures of GGUF that our families go to and come from, and what each of them computes.

An architecture's name stands for a graph in the program that reads the file, so it has to be the right one to the
last activation: the same tensors under another name run, and write nonsense.

Source: llama.cpp (src/models/{llama,qwen2,qwen3,gemma3,bitnet}.cpp, the rope types of src/llama-model.cpp) and the
fork inside bitnet.cpp (build_bitnet_158 in its src/llama.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wrinklefree.artifact.config import Activation, ModelConfig, parse_config
from wrinklefree.errors import InputError

LLAMA_CPP, BITNET_CPP = "llama.cpp", "bitnet.cpp"


@dataclass(frozen=True)
class Architecture:
    """What one ``general.architecture`` computes, as far as our families differ in it.

    ``model_types``: the Hugging Face families it serves; a file comes back as the first (a bitnet one whose origin was
    llama with SubLN as that). ``activation`` is built into
    the graph, no key names it. ``permuted``: rows of q and k are in the order that rotates neighbours, see
    `names.rows_to_gguf`. ``sub_norms``: it has norms before o_proj and down_proj. ``tied``: the head is the embedding,
    whatever else the file holds. ``free_head_dim``: heads times their size may differ from the hidden size.
    ``rope_factors``: it divides frequencies by the tensor ``rope_freqs.weight``. ``biases``: the linears that may
    have one. ``programs``: the programs that have this graph.
    """

    name: str
    model_types: tuple[str, ...]
    activation: Activation
    permuted: bool = False
    sub_norms: bool = False
    tied: bool = False
    free_head_dim: bool = True
    rope_factors: bool = False
    biases: tuple[str, ...] = ()
    programs: tuple[str, ...] = (LLAMA_CPP,)


_QKV = ("q_proj", "k_proj", "v_proj")
_BOTH = (LLAMA_CPP, BITNET_CPP)
_SUB_NORMS = ("bitnet", "llama", "mistral")

ARCHITECTURES: dict[str, Architecture] = {
    entry.name: entry
    for entry in (
        Architecture(
            "llama", ("llama", "mistral"), "silu", permuted=True, rope_factors=True, programs=_BOTH,
            biases=(*_QKV, "o_proj", "gate_proj", "up_proj", "down_proj"),
        ),
        Architecture("qwen2", ("qwen2",), "silu", free_head_dim=False, biases=_QKV, programs=_BOTH),
        Architecture("qwen3", ("qwen3",), "silu", biases=_QKV),
        Architecture("gemma3", ("gemma3_text",), "gelu_pytorch_tanh", biases=_QKV),
        # 1bitLLM's models, and ours of llama with SubLN: silu, no llama3 rope, no biases, no head of its own.
        Architecture(
            "bitnet", _SUB_NORMS, "silu", sub_norms=True, tied=True, free_head_dim=False, programs=_BOTH
        ),
        # Microsoft's 2B-4T; an early release of the file calls the same graph bitnet-25.
        *(
            Architecture(
                name, _SUB_NORMS, "relu2", sub_norms=True, tied=True, rope_factors=True,
                biases=(*_QKV, "o_proj"), programs=(BITNET_CPP,),
            )
            for name in ("bitnet-b1.58", "bitnet-25")
        ),
    )
}  # fmt: skip


def architecture_for(config: Mapping[str, Any], subln: bool, place: str) -> Architecture:
    """Return the architecture whose graph computes a model of this Hugging Face ``config``.

    ``subln``: the model has norms before o_proj and down_proj that its family does not have by itself.

    Raises: InputError naming what no architecture computes; FormatError when ``config`` is none of ours.
    """
    sizes = parse_config(config, place)
    sub_norms = subln or sizes.has_sub_norms
    reasons = []
    for entry in ARCHITECTURES.values():
        if sizes.model_type in entry.model_types:
            reason = _obstacle(entry, sizes, sub_norms)
            if reason is None:
                return entry
            reasons.append(f"{entry.name}: {reason}")
    why = "; ".join(dict.fromkeys(reasons)) or "none of them is of this family"
    raise InputError(
        f"{place}: no GGUF architecture computes this {sizes.model_type} model{' with SubLN' * subln} ({why}); "
        "the packed directory can hold it"
    )


def _obstacle(entry: Architecture, sizes: ModelConfig, sub_norms: bool) -> str | None:
    """Return why a graph computes something else, or None."""
    if sub_norms != entry.sub_norms:
        return "has norms before o_proj and down_proj" if entry.sub_norms else "has no norm before o_proj"
    if sizes.hidden_act != entry.activation:
        return f"computes {entry.activation}, not {sizes.hidden_act}"
    if entry.tied and not sizes.tie_word_embeddings:
        return "has no output head of its own"
    width = sizes.num_attention_heads * sizes.head_dim
    if not entry.free_head_dim and width != sizes.hidden_size:
        return f"{sizes.num_attention_heads} heads of {sizes.head_dim} must make the hidden size {sizes.hidden_size}"
    if sizes.rope.kind == "llama3" and not entry.rope_factors:
        return "knows no llama3 scaling of its rotary embedding"
    return None
