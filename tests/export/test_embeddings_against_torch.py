"""The engine's embeddings and scores of prompts against the torch model that the engine's was exported from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import toy_checkpoints as toys

from wrinklefree.engine import Engine, SamplingParams
from wrinklefree.export.export import export
from wrinklefree.export.tables import quantized_tables
from wrinklefree.export.verify import exported_tables
from wrinklefree.models.io import load_checkpoint


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Engine]:
    """A converted toy in torch, and exported in the engine."""
    root = tmp_path_factory.mktemp(request.param)
    source = toys.write(root / "source", request.param)
    export(source, root / "packed", threads=1, greedy_tokens=4)
    return load_checkpoint(source)[0].eval(), Engine.load(root / "packed", threads=1, kv_type="float32")


def test_an_embedding_is_the_mean_of_torchs_last_hidden_states(both: tuple[Any, Engine]) -> None:
    model, engine = both
    for count in (1, 7, 90):
        tokens = np.random.default_rng(count).integers(0, 256, count)
        with torch.no_grad(), exported_tables(model, quantized_tables(model, "q8")):
            states = model.model(torch.tensor(tokens)[None]).last_hidden_state[0].numpy()
        found = engine.embed(tokens, normalize=False)
        # An activation rounded apart is 1/127 of the largest; see tests/engine/test_engine_logits.py.
        assert np.abs(found - states.mean(axis=0)).max() < 0.05 * states.std()


def test_scores_of_a_prompt_are_torchs_log_softmax(both: tuple[Any, Engine]) -> None:
    model, engine = both
    tokens = np.random.default_rng(1).integers(0, 256, 90)
    with torch.no_grad(), exported_tables(model, quantized_tables(model, "q8")):
        wanted = model(torch.tensor(tokens)[None]).logits[0].float().log_softmax(-1).numpy()[:-1]
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=3)
    found = engine.generate(tokens, params).run().prompt_scores
    assert found is not None
    assert np.abs(found.logprobs[1:] - wanted[np.arange(89), tokens[1:]]).max() < 0.1 * wanted.std()
    rows = np.arange(89)[:, None]
    assert np.abs(found.best_logprobs[1:] - wanted[rows, found.best[1:]]).max() < 0.1 * wanted.std()
    assert np.median(np.abs(found.logprobs[1:] - wanted[np.arange(89), tokens[1:]])) < 1e-3
