"""Samplers of several rows at the same time against each of them alone, draw for draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy_models import make_toy

from wrinklefree import _native
from wrinklefree.engine import Engine
from wrinklefree.errors import InputError

WIDTH = 300
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 9, "min_p": 0.01},
    {"temperature": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
]


@pytest.fixture(scope="module", params=[1, 2])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = make_toy(tmp_path_factory.mktemp("rows") / "toy", "llama_tensor")
    return Engine.load(directory, threads=request.param, slots=1)._model


def _samplers(count: int) -> list[Any]:
    return [_native.Sampler(WIDTH, seed=seed, **KINDS[seed % len(KINDS)]) for seed in range(count)]


def test_each_row_is_sampled_as_alone(model: Any) -> None:
    together, alone = _samplers(13), _samplers(13)
    random = np.random.default_rng(0)
    for _ in range(20):
        logits = random.normal(size=(17, WIDTH)).astype(np.float32) * 3
        rows = random.permutation(17)[:13].tolist()
        logprobs = [int(number) for number in random.integers(-1, 4, 13)]
        found = _native.sample_rows(model, together, logits, rows, logprobs)
        assert found == [s.sample(logits[row], n) for s, row, n in zip(alone, rows, logprobs, strict=True)]
        for (token, *_), one, other in zip(found, together, alone, strict=True):
            one.accept(np.array([token], np.int32))
            other.accept(np.array([token], np.int32))


def test_a_row_that_is_refused_takes_no_other_with_it(model: Any) -> None:
    logits = np.random.default_rng(1).normal(size=(5, WIDTH)).astype(np.float32)
    logits[3, 7] = np.nan
    found = _native.sample_rows(model, _samplers(5), logits, [0, 1, 2, 3, 4], [-1] * 5)
    kept = [sampler.sample(logits[row]) for row, sampler in enumerate(_samplers(5)) if row != 3]
    assert found[3] is None and [one for one in found if one is not None] == kept
    assert _native.sample_rows(model, [], logits, [], []) == []


def test_what_cannot_be_is_refused(model: Any) -> None:
    logits = np.zeros((2, WIDTH), np.float32)
    one, other = _samplers(2)
    for samplers, rows, logprobs, words in (
        ([one, one], [0, 1], [-1, -1], "one sampler for two rows"),
        ([one, other], [0, 2], [-1, -1], "found row 2 of 2"),
        ([one, other], [0, -1], [-1, -1], "found row -1 of 2"),
        ([one, other], [0], [-1, -1], "the same length"),
        ([one, other], [0, 1], [-1], "the same length"),
        ([one, _native.Sampler(WIDTH + 1)], [0, 1], [-1, -1], f"the sampler was made for {WIDTH + 1}"),
    ):
        with pytest.raises(InputError, match=words):
            _native.sample_rows(model, samplers, logits, rows, logprobs)
