"""The engine's logits against the NumPy reference (reference_model.py) on toy models of every feature, for every kernel
table this machine runs; and the engine against itself: prefill against single tokens, threads, slots, cache types.

Tolerances. Products are exact integers, so the engine and the reference differ by float32 rounding, about 1e-6 of the
logits' spread, until one activation lies so near to a rounding tie that the two round it apart. The reference knows
the first token where that can happen (``first_tie``): before it 1e-5 is demanded (and for a quantised head what the
ties of its 15-bit input can change, ``head_slack``, about 1e-4 of the spread). From there on a code off by one is
1/127 of the largest activation, about 0.3 % of a product's spread, carried on through the cache: 0.5 bounds all of it,
while a wrong weight, position or head is off by more than one spread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference_model import ReferenceModel
from toy_models import TOYS, make_toy, toy_config, write_toy

from wrinklefree import _native
from wrinklefree.engine import Engine, greedy
from wrinklefree.errors import InputError

KERNELS = list(_native.kernels.runnable())
EXACT = 1e-5
FLIPPED = 0.5


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("toys")
    return {name: make_toy(root / name, name) for name in TOYS}


def random_tokens(directory: Path, count: int, seed: int) -> list[int]:
    vocab_size = ReferenceModel(directory).config["vocab_size"]
    return [int(t) for t in np.random.default_rng(seed).integers(0, vocab_size, count)]


def relative_errors(found: Any, wanted: Any) -> Any:
    """The largest error of each position in units of the logits' spread."""
    return np.abs(found - wanted).max(axis=1) / wanted.std()


@pytest.mark.parametrize("name", TOYS)
def test_logits_equal_the_reference(toys: dict[str, Path], name: str) -> None:
    model = ReferenceModel(toys[name], kv_dtype=np.float32)
    engines = [Engine.load(toys[name], threads=2, kernels=k, kv_type="float32") for k in KERNELS]
    compared = 0
    for seed in range(12):
        tokens = random_tokens(toys[name], 50, seed)
        wanted = model.logits(tokens)
        compared += model.first_tie
        for engine in engines:
            errors = relative_errors(engine.logits(tokens), wanted)
            strict = errors - model.head_slack / wanted.std()
            assert strict[: model.first_tie].max(initial=0) < EXACT, engine.kernels_name
            assert errors.max() < FLIPPED, engine.kernels_name
    assert compared >= 40  # else the strict comparison said nothing


@pytest.mark.parametrize("name", TOYS)
def test_greedy_text_equals_the_reference(toys: dict[str, Path], name: str) -> None:
    # Each next token is compared with the reference's best after the same tokens, which is the same as comparing
    # two greedy runs. float16 cache: the default.
    model = ReferenceModel(toys[name])
    prompt = random_tokens(toys[name], 9, seed=5)
    for kernels in KERNELS:
        engine = Engine.load(toys[name], threads=2, kernels=kernels)
        made = engine.generate(prompt, greedy(128)).run().tokens
        assert len(made) == 128
        assert len(set(made)) > 20  # a text that repeats at once would compare little
        wanted = model.logits(prompt + made)[len(prompt) - 1 : -1]
        best = wanted.argmax(axis=1)
        gap = (wanted.max(axis=1) - wanted[np.arange(128), made]) / wanted.std()
        differs = best != np.array(made)
        assert differs.sum() <= 3, kernels
        assert gap.max() < 0.1, kernels  # and then only where the reference's best two are nearly equal


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", ["llama_tensor", "llama_group_128", "qwen3", "mistral_window", "low_rank", "gemma3"])
def test_prefill_equals_single_tokens(toys: dict[str, Path], name: str, kernels: str) -> None:
    # More than one chunk of 256 tokens, with a remainder. Products of both ways are the same integers; only sums of
    # float32 (norms, attention, group scales) may be ordered differently, so EXACT up to a flip, FLIPPED after it.
    engine = Engine.load(toys[name], threads=2, kernels=kernels)
    tokens = np.array(random_tokens(toys[name], 300, seed=1), np.int32)
    whole = engine.logits(tokens)
    model = _native.Model.load(str(toys[name]), kernels=kernels, threads=2)
    row = np.empty(engine.vocab_size, np.float32)
    single = []
    for t in range(len(tokens)):
        model.forward(0, tokens[t : t + 1], row)
        single.append(row.copy())
    errors = relative_errors(np.array(single), whole)
    assert np.median(errors[:50]) < EXACT
    assert errors.max() < FLIPPED
    # one call for the prompt, logits of the last token only
    model.truncate(0, 0)
    model.forward(0, tokens, row)
    assert np.abs(row - whole[-1]).max() / whole.std() < FLIPPED


def test_threads_do_not_change_a_bit(toys: dict[str, Path]) -> None:
    for name in ("llama_row_odd_sizes", "llama_group_64", "bitnet", "low_rank", "low_rank_subln_bias", "gemma3"):
        tokens = random_tokens(toys[name], 40, seed=2)
        one = Engine.load(toys[name], threads=1).logits(tokens)
        for threads in (2, 3, 5):
            engine = Engine.load(toys[name], threads=threads)
            assert engine.threads == threads
            np.testing.assert_array_equal(engine.logits(tokens), one)


def test_logit_chunks_are_the_logits(toys: dict[str, Path]) -> None:
    engine = Engine.load(toys["llama_tensor"])
    tokens = random_tokens(toys["llama_tensor"], 150, seed=3)
    whole = engine.logits(tokens)
    seen = 0
    for start, part in engine.logit_chunks(tokens):
        assert start == seen
        np.testing.assert_array_equal(part, whole[start : start + len(part)])
        seen += len(part)
    assert seen == 150


def test_position_matters(tmp_path: Path) -> None:
    # One layer: without rotary embedding attention is a mixture of the same values whatever their order, so swapping
    # two earlier tokens would leave the last row as it is.
    config = {**toy_config("llama_tensor"), "num_hidden_layers": 1}
    directory = write_toy(tmp_path, config, "tensor", 64, seed=0)
    ordered, swapped = [7, 9, 30, 11], [9, 7, 30, 11]

    def difference(model: Any) -> Any:
        return model.logits(ordered)[3] - model.logits(swapped)[3]

    reference = ReferenceModel(directory, kv_dtype=np.float32)
    unturned = ReferenceModel(directory, kv_dtype=np.float32)
    unturned.rotate = lambda x, layer: x  # type: ignore[method-assign]
    found, wanted = difference(Engine.load(directory, kv_type="float32")), difference(reference)
    assert np.abs(difference(unturned)).max() < 0.05 * np.abs(wanted).max()
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


def test_window_hides_old_positions(toys: dict[str, Path]) -> None:
    # sliding_window 24 in each of 2 layers: token 60 sees back to 60 - 2 * 23 only.
    engine = Engine.load(toys["mistral_window"])
    tokens = random_tokens(toys["mistral_window"], 61, seed=4)
    changed = [(tokens[0] + 1) % 256, *tokens[1:]]
    np.testing.assert_array_equal(engine.logits(tokens)[60], engine.logits(changed)[60])
    assert np.abs(engine.logits(tokens)[20] - engine.logits(changed)[20]).max() > 0


def test_cache_types_agree(toys: dict[str, Path]) -> None:
    # float16 keys and values carry 11 bits: a relative error of 2^-12 each, far below one activation code in 127.
    tokens = random_tokens(toys["qwen2"], 60, seed=6)
    half = Engine.load(toys["qwen2"]).logits(tokens)
    full = Engine.load(toys["qwen2"], kv_type="float32").logits(tokens)
    errors = relative_errors(half, full)
    assert 0 < errors.max() < FLIPPED


def test_slots_do_not_disturb_each_other(toys: dict[str, Path]) -> None:
    directory = toys["llama_tensor"]
    prompts = [random_tokens(directory, 5 + 4 * i, seed=10 + i) for i in range(3)]
    alone = [Engine.load(directory).generate(p, greedy(20)).run().tokens for p in prompts]
    engine = Engine.load(directory, slots=3)
    generations = [engine.generate(p, greedy(20)) for p in prompts]
    together: list[list[int]] = [[], [], []]
    for _ in range(20):
        for i, generation in enumerate(generations):
            together[i].append(next(generation).token)
    assert together == alone


def test_fifty_requests_on_one_slot_repeat(toys: dict[str, Path]) -> None:
    # Trap: a cache not cleared between requests fills up or leaks old text into new answers.
    directory = toys["llama_tensor"]
    engine = Engine.load(directory, context=128)
    lengths = [1, 2, 3, 5, 8, 13, 31, 32, 33, 63, 64, 65, 90]
    prompts = [random_tokens(directory, n, seed=n) for n in lengths]
    first: dict[int, list[int]] = {}
    for request in range(50):
        which = (request * 5) % len(prompts)
        made = engine.generate(prompts[which], greedy(12)).run().tokens
        assert first.setdefault(which, made) == made
    assert len({tuple(made) for made in first.values()}) > 5
    fresh = Engine.load(directory, context=128).generate(prompts[3], greedy(12)).run().tokens
    assert fresh == first[3]


def test_truncated_slot_continues_as_if_never_longer(toys: dict[str, Path]) -> None:
    tokens = np.array(random_tokens(toys["qwen3"], 40, seed=8), np.int32)
    model = _native.Model.load(str(toys["qwen3"]))
    model.forward(0, tokens)
    wanted, found = np.empty((2, model.vocab_size), np.float32)
    model.truncate(0, 10)
    assert model.length(0) == 10
    model.forward(0, tokens[10:11], found)
    model.truncate(0, 0)
    model.forward(0, tokens[:10])
    model.forward(0, tokens[10:11], wanted)
    np.testing.assert_array_equal(found, wanted)


def test_full_context_is_an_error_and_writes_nothing(toys: dict[str, Path]) -> None:
    model = _native.Model.load(str(toys["llama_tensor"]), context=8)
    tokens = np.arange(8, dtype=np.int32)
    row, again = np.empty((2, model.vocab_size), np.float32)
    model.forward(0, tokens[:7], row)
    with pytest.raises(InputError, match="2 tokens from position 7 on exceed the context of 8"):
        model.forward(0, tokens[:2])
    assert model.length(0) == 7
    model.forward(0, tokens[7:], row)
    with pytest.raises(InputError, match="1 tokens from position 8 on"):
        model.forward(0, tokens[:1], row)
    model.truncate(0, 7)
    model.forward(0, tokens[7:], again)
    np.testing.assert_array_equal(row, again)


def test_wrong_arguments_of_the_native_model(toys: dict[str, Path]) -> None:
    model = _native.Model.load(str(toys["llama_tensor"]), slots=2)
    good = np.zeros(2, np.int32)
    with pytest.raises(InputError, match="slots 0 to 1"):
        model.forward(2, good)
    with pytest.raises(InputError, match="slots 0 to 1"):
        model.truncate(-1, 0)
    with pytest.raises(InputError, match="found 256 at index 1, allowed are 0 to 255"):
        model.forward(0, np.array([0, 256], np.int32))
    with pytest.raises(InputError, match="found -1"):
        model.forward(0, np.array([-1], np.int32))
    with pytest.raises(InputError, match="at least one"):
        model.forward(0, good[:0])
    with pytest.raises(InputError, match=r"an array \[256\] or \[2, 256\]"):
        model.forward(0, good, np.empty(255, np.float32))
    with pytest.raises(InputError, match="slot 0 holds 0"):
        model.truncate(0, 1)
    with pytest.raises(InputError, match="allowed are float16, float32 and int8"):
        _native.Model.load(str(toys["llama_tensor"]), kv_type="int4")
    with pytest.raises(InputError, match="kernels: 'mmx'"):
        _native.Model.load(str(toys["llama_tensor"]), kernels="mmx")
    with pytest.raises(InputError, match="threads: found 257"):
        _native.Model.load(str(toys["llama_tensor"]), threads=257)
    with pytest.raises(InputError, match="context: found 513, allowed is an integer from 1 to 512"):
        _native.Model.load(str(toys["llama_tensor"]), context=513)
