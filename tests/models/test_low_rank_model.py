"""Low-rank factors of whole toy models: ranks, the closed form's walk, what is frozen, and what gets gradients."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wrinklefree.errors import InputError
from wrinklefree.models.convert import convert_model
from wrinklefree.models.low_rank import (
    LowRankConfig,
    fit_factors,
    layer_ranks,
    prepare_low_rank,
    summary,
    train_only_factors,
)
from wrinklefree.models.plain import save_plain
from wrinklefree.quant.bitlinear import bit_linears, quant_strength
from wrinklefree.quant.low_rank import add_factors, low_rank_linears
from wrinklefree.quant.ternary import TernarySpec

SPEC = TernarySpec("group", 64)
FITTED = LowRankConfig(init="closed_form", rank=8, alternations=2)


def toy(seed: int = 0) -> Any:
    """A toy whose weights are large enough for its layers to matter."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, max_position_embeddings=64, initializer_range=0.15,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def ternary(subln: str = "none", ranks: Any = None) -> Any:
    model = toy()
    convert_model(model, SPEC, subln, tokens(rows=4))  # type: ignore[arg-type]
    if ranks is not None:
        add_factors(model, layer_ranks(model, ranks))
    return model


def tokens(seed: int = 1, rows: int = 24) -> torch.Tensor:
    return torch.randint(0, 128, (rows, 32), generator=torch.Generator().manual_seed(seed))


def rows(count: int) -> torch.Tensor:
    return tokens(rows=count)


def distance(model: Any) -> float:
    """Mean KL from the full-precision toy, on sequences nobody was fitted on."""
    sequences = tokens(seed=9, rows=8)
    with torch.no_grad():
        teacher = toy()(sequences).logits.log_softmax(-1)
        student = model(sequences).logits.log_softmax(-1)
    return float((teacher.exp() * (teacher - student)).sum(-1).mean())


def heard(model: Any, config: LowRankConfig, original: bool = True) -> list[str]:
    lines: list[str] = []
    prepare_low_rank(model, config, rows, original, lines.append)
    return lines


def test_a_rank_is_a_number_or_a_share_and_never_more_than_a_layer_has() -> None:
    model = ternary()
    assert set(layer_ranks(model, 5).values()) == {5}
    shares = layer_ranks(model, 0.1)
    assert shares["model.layers.0.self_attn.q_proj"] == 6 and shares["model.layers.0.self_attn.k_proj"] == 3
    assert set(layer_ranks(model, 1e-6).values()) == {1}
    assert layer_ranks(model, 50)["model.layers.1.self_attn.v_proj"] == 32
    some = layer_ranks(model, 4, ("layers.0", "down_proj"))
    assert len(some) == 6 and not any("layers.0" in name or "down_proj" in name for name in some)
    assert len(layer_ranks(model, 4, ())) == 14
    with pytest.raises(InputError, match="'lm_head' is no part of any linear's path"):
        layer_ranks(model, 4, ("lm_head",))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": 2.5}, {"rank": -1}, {"sequences": 0}, {"damping": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"low_rank.{next(iter(wrong))}: found"):
        LowRankConfig(**wrong)


@pytest.mark.parametrize("subln", ["none", "identity"])
def test_the_closed_form_brings_the_model_closer_and_says_by_how_much(subln: str) -> None:
    plain, small, large = (ternary(subln) for _ in range(3))
    *layers, line = heard(small, FITTED)
    assert len(layers) == 2 and "layers.1.mlp.down_proj 0." in layers[1]
    heard(large, LowRankConfig(init="closed_form", rank=24, alternations=2))
    assert distance(large) < 0.5 * distance(small)
    assert distance(small) < 0.7 * distance(plain)
    assert line.startswith("Low-rank correction: mean squared error of 14 layers 0.")
    assert quant_strength(small).value == 1.0


def test_every_layer_is_reported_with_its_own_errors() -> None:
    """The error is that of the projection on what it is really fed: recomputed here for the first one."""
    model = ternary(ranks=8)
    with torch.no_grad():
        states = model.model.embed_tokens(tokens())
        x = model.model.layers[0].input_layernorm(states).flatten(0, 1)
        wanted = x @ toy().model.layers[0].self_attn.q_proj.weight.t()
    told: list[Any] = []
    reports = fit_factors(model, tokens(), FITTED, told.extend)
    assert told == reports
    assert [report.name for report in reports] == [name for name, _ in bit_linears(model)]
    assert all(report.error_after < report.error_before < 1 and report.rank == 8 for report in reports)
    with torch.no_grad():
        found = model.model.layers[0].self_attn.q_proj(x)
    assert float((found - wanted).square().sum() / wanted.square().sum()) == pytest.approx(
        reports[0].error_after, rel=0.02
    )
    assert reports[0].factor_bits == 16 * 8 * 128 / 64**2
    assert "14 layers" in summary(reports)


def test_it_is_repeatable_and_leaves_excluded_layers_alone() -> None:
    config = LowRankConfig(init="closed_form", rank=4, exclude=("mlp",), alternations=1)
    one, two, plain = ternary(), ternary(), ternary()
    heard(one, config)
    heard(two, config)
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert len(list(low_rank_linears(one))) == 8
    for name, parameter in plain.named_parameters():
        if ".mlp." in name:
            assert torch.equal(parameter, one.get_parameter(name))


def test_codes_of_bfloat16_latents_are_those_that_were_fitted() -> None:
    model = ternary(ranks=8).bfloat16()
    reports = fit_factors(model, tokens(), FITTED)
    assert all(report.error_after < report.error_before for report in reports)
    assert {parameter.dtype for name, parameter in model.named_parameters() if not name.endswith("_scale")} == {
        torch.bfloat16
    }


def test_only_factors_are_trained_or_everything() -> None:
    frozen, free = ternary(), ternary()
    heard(frozen, LowRankConfig(init="random", rank=4))
    heard(free, LowRankConfig(init="random", rank=4, trainable="all"))
    trained = [name for name, parameter in frozen.named_parameters() if parameter.requires_grad]
    assert len(trained) == 28 and all(".low_rank_" in name for name in trained)
    assert all(parameter.requires_grad for parameter in free.parameters())


def test_gradients_survive_frozen_embeddings_and_checkpointing() -> None:
    """Nothing before the first layer needs a gradient; the reentrant kind of checkpointing would drop all of them."""
    grads = []
    for checkpointing in (False, True):
        model = ternary(ranks=4).train()
        for _, layer in low_rank_linears(model):
            torch.nn.init.normal_(layer.low_rank_u, std=0.1, generator=torch.Generator().manual_seed(1))
        train_only_factors(model)
        if checkpointing:
            for layer in model.model.layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        model(tokens(rows=2)).logits.square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, plain in grads[0].items():
        assert plain is not None and plain.abs().max() > 0, name
        torch.testing.assert_close(grads[1][name], plain)


def test_a_plain_directory_holds_the_sum(tmp_path: Path) -> None:
    """Its reader rounds no inputs, so codes, scales and factors are one matrix there."""
    model = ternary(ranks=4)
    for _, layer in low_rank_linears(model):
        torch.nn.init.normal_(layer.low_rank_u, std=0.3, generator=torch.Generator().manual_seed(2))
    save_plain(model, _tokenizer(), tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    layer = model.model.layers[1].self_attn.o_proj
    with torch.no_grad():
        wanted = x @ layer.effective_weight().t() + x @ layer.low_rank_v.t() @ layer.low_rank_u.t()
        torch.testing.assert_close(again.model.layers[1].self_attn.o_proj(x), wanted)


def _tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({str(i): i for i in range(128)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="0")


def test_what_does_not_fit_is_refused() -> None:
    corrected = ternary(ranks=2)
    with pytest.raises(InputError, match="has factors in 14 layers; use keep"):
        heard(corrected, LowRankConfig(init="random"))
    with pytest.raises(InputError, match="needs the original weights"):
        heard(ternary(), FITTED, original=False)
    with pytest.raises(InputError, match="has no factors"):
        heard(ternary(), LowRankConfig(init="keep"))
    heard(corrected, LowRankConfig(init="keep"), original=False)
    assert not corrected.model.embed_tokens.weight.requires_grad
    untouched = ternary()
    heard(untouched, LowRankConfig())
    assert not list(low_rank_linears(untouched))
