"""Which families the engine can hold: BitNet as torch computes it, the others refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizer_toys
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from wrinklefree.errors import FormatError
from wrinklefree.export.export import export
from wrinklefree.models.convert import convert_model
from wrinklefree.models.io import CheckpointInfo, save_checkpoint
from wrinklefree.quant.ternary import TernarySpec

_SIZES: dict[str, Any] = {
    "vocab_size": 258, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 16,
    "tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None,
    "initializer_range": 0.2,
}  # fmt: skip


def checkpoint(out: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**_SIZES, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    convert_model(model.eval(), TernarySpec("group", 64))
    tokenizer_toys.write(out.with_name("tokenizer"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out.with_name("tokenizer"))
    save_checkpoint(model, tokenizer, out, CheckpointInfo("convert", spec=TernarySpec("group", 64)))
    return out


def test_the_engine_runs_a_bitnet_model_as_torch_does(tmp_path: Path) -> None:
    """relu2 and norms before o_proj and down_proj: `export` compares logits and greedy tokens with torch itself."""
    source = checkpoint(tmp_path / "bitnet", model_type="bitnet", hidden_act="relu2")
    report = export(source, tmp_path / "packed", embedding="f16")
    assert report.codes is not None and report.agreement is not None
    assert report.agreement.passed and report.agreement.logit_cosine_min > 0.999
    written = {tensor.name for tensor in report.tensors}
    assert {f"model.layers.1.{name}" for name in ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")} <= written


@pytest.mark.parametrize("model_type", ["gemma", "gemma2"])
def test_a_family_the_engine_cannot_hold_is_refused_and_nothing_is_written(model_type: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", model_type=model_type)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FormatError, match=f"model_type: found '{model_type}', allowed are llama, .*bitnet"):
        export(source, tmp_path / "packed")
    assert sorted(tmp_path.iterdir()) == before
