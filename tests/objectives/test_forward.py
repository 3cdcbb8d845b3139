"""Packed documents against the same documents alone; captured states against Hugging Face's own outputs."""

from __future__ import annotations

import pytest
import torch
from train_toys import pack, random_documents, toy_batch, toy_model

from wrinklefree.errors import InputError
from wrinklefree.models.forward import HIDDEN, LOGITS, document_mask, forward, qkv


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_give_the_logits_of_separate_documents(family: str, ternary: bool, attention: str) -> None:
    model = toy_model(family=family, ternary=ternary)
    model.config._attn_implementation = attention
    documents = random_documents([9, 1, 10], seed=3)
    packed = forward(model, pack([documents], 24), frozenset({LOGITS})).logits
    assert packed is not None
    start = 0
    for document in documents:
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([document])).logits[0]
        # Another summation order in the attention, at logits of size about 10 in float32.
        worst = (packed[0, start : start + len(document)] - alone).abs().max().item()
        assert worst < 1e-5 * max(1.0, alone.abs().max().item())
        start += len(document)


def test_explicit_positions_change_nothing_for_one_document() -> None:
    model = toy_model()
    document = random_documents([16])[0]
    ids = torch.tensor([document])
    with torch.no_grad():
        default = model(input_ids=ids).logits
        one_dimensional = model(input_ids=ids, position_ids=torch.arange(16)[None]).logits
    ours = forward(model, pack([[document]], 16), frozenset({LOGITS})).logits
    torch.testing.assert_close(ours, default, rtol=0, atol=1e-5)
    torch.testing.assert_close(one_dimensional, default, rtol=0, atol=1e-5)


def test_the_mask_is_causal_within_a_document_and_never_empty() -> None:
    batch = toy_batch()
    mask = document_mask(batch.document_ids)[:, 0]
    for b in range(2):
        for i in range(24):
            for j in range(24):
                same = batch.document_ids[b, i] == batch.document_ids[b, j]
                assert bool(mask[b, i, j]) == (bool(same) and j <= i)
    assert mask.any(dim=-1).all()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_hidden_states_are_the_residual_stream_without_embedding_and_before_the_norm(family: str) -> None:
    model = toy_model(family=family)
    batch = pack([random_documents([16])], 16)
    output = forward(model, batch, frozenset({HIDDEN, LOGITS}))
    with torch.no_grad():
        theirs = model(input_ids=batch.input_ids, output_hidden_states=True)
    assert len(output.hidden_states) == 2
    # Hugging Face lists the embedding first, and its last entry has gone through the final norm.
    torch.testing.assert_close(output.hidden_states[0], theirs.hidden_states[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(output.norm(output.hidden_states[1]), theirs.hidden_states[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(output.head(output.final), output.logits)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_projection_states_are_the_projections_of_the_normed_input(family: str) -> None:
    model = toy_model(family=family)
    batch = toy_batch()
    output = forward(model, batch, frozenset({HIDDEN, qkv(-1)}))
    layer = model.get_submodule("model.layers.1")
    normed = layer.input_layernorm(output.hidden_states[0])
    for states, name, heads in zip(output.projections[-1], ("q", "k", "v"), (4, 2, 2), strict=True):
        assert states.shape == (2, 24, heads * 16)
        expected = layer.self_attn.get_submodule(f"{name}_proj")(normed)
        torch.testing.assert_close(states, expected)


def test_only_what_is_wanted_is_kept_and_a_missing_layer_is_an_input_error() -> None:
    model = toy_model()
    output = forward(model, toy_batch())
    assert output.logits is None and output.hidden_states == () and output.projections == {}
    with pytest.raises(InputError, match="layer 2: the model has 2 layers"):
        forward(model, toy_batch(), frozenset({qkv(2)}))
    assert not any(m._forward_hooks for m in model.modules())
