"""Embeddings against the mean of the NumPy reference's hidden states, and beside other answers against alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference_model import ReferenceModel
from toy_models import make_toy

from wrinklefree.engine import Engine, Together, greedy
from wrinklefree.engine.embedding import add_embedding, normalised
from wrinklefree.errors import InputError


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toys") / "toy", "llama_row_odd_sizes")


def tokens_of(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).integers(0, 250, count).astype(np.int32)


@pytest.mark.parametrize("count", [1, 12, 300])
def test_an_embedding_is_the_mean_of_the_references_states(toy: Path, count: int) -> None:
    reference = ReferenceModel(toy, kv_dtype=np.float32)
    engine = Engine.load(toy, threads=1, kv_type="float32")
    tokens = tokens_of(count, count)
    wanted = reference.hidden([int(token) for token in tokens]).mean(axis=0)
    found = engine.embed(tokens, normalize=False)
    # Rounding apart of activations, 0.5 of the spread a token at the most (test_engine_logits.py), is rare and has
    # either sign; with none of it the means of float32 states differ by less than 1e-5 of their spread.
    assert found.dtype == np.float32
    bound = 1e-5 if reference.first_tie == count else 0.05
    assert np.abs(found - wanted).max() < bound * wanted.std()
    length = np.linalg.norm(found.astype(np.float64))
    np.testing.assert_allclose(engine.embed(tokens), found / length, rtol=1e-6)


def test_embeddings_and_answers_in_joint_passes_are_those_alone(toy: Path) -> None:
    # three slots: embeddings of several pieces, answers that decode meanwhile, and some that wait
    engine = Engine.load(toy, threads=1, slots=3)
    prompts = [tokens_of(seed, count) for seed, count in ((1, 5), (2, 40), (3, 1), (4, 400), (5, 257))]
    alone = [engine.embed(prompt, normalize=False) for prompt in prompts]
    texts = [engine.generate(prompt, greedy(9)).run().tokens for prompt in prompts]
    together = Together(engine)
    embeddings, answers = [], []
    for prompt in prompts:
        embeddings.append(add_embedding(together, prompt))
        assert embeddings[-1].embedding is None
        answers.append(together.add(prompt, greedy(9)))
    while together.run():
        pass
    for found, wanted in zip(embeddings, alone, strict=True):
        np.testing.assert_array_equal(found.embedding, wanted)
    assert [answer.run().tokens for answer in answers] == texts


def test_what_has_no_embedding(toy: Path) -> None:
    engine = Engine.load(toy, threads=1)
    with pytest.raises(InputError, match="input: found no token"):
        engine.embed([])
    with pytest.raises(InputError, match="input: found token 99999"):
        engine.embed([1, 99999])
    assert engine.generate([1, 2], greedy(1)).run().embedding is None
    np.testing.assert_array_equal(normalised(np.zeros(3, np.float32)), np.zeros(3))
