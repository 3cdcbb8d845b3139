"""Passes that are not plain appending: rows computed anew in the middle of a sequence, attention by blocks, rows whose
numbers are those of single tokens, a finished block and the next one in one pass.

By-blocks logits are compared with the NumPy reference under the mask of blocks; everything else with another way
through the engine that must give the same numbers to the last bit (see test_engine_batch.py on why it can).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference_model import ReferenceModel
from safetensors.numpy import load_file
from test_engine_logits import EXACT, FLIPPED, KERNELS, relative_errors
from toy_models import TOYS, make_toy, toy_config, write_toy

from wrinklefree import _native
from wrinklefree.artifact.safetensors_file import write_safetensors
from wrinklefree.engine import Batch, BatchItem, Engine
from wrinklefree.engine.rows import Rows
from wrinklefree.errors import FormatError

WINDOWED = ("mistral_window", "gemma3", "gemma3_subln")
PLAIN = [name for name in TOYS if name not in WINDOWED]
SLOW_KERNELS_TOYS = ("llama_group_64", "mistral_window")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("toys")
    return {name: make_toy(root / name, name) for name in TOYS}


def pairs(names: Any) -> list[tuple[str, str]]:
    return [(n, k) for k in KERNELS for n in (SLOW_KERNELS_TOYS if k == "reference" else names) if n in names]


def some_tokens(count: int, seed: int, vocab_size: int = 250) -> Any:
    return np.random.default_rng(seed).integers(0, vocab_size, count).astype(np.int32)


def run(model: Any, *items: tuple[Any, ...]) -> list[Any]:
    """Logits of items (slot, tokens, start, block, alone) of one call, all rows."""
    slots, tokens, starts, blocks, alone = (list(column) for column in zip(*items, strict=True))
    logits = np.empty((sum(len(t) for t in tokens), model.vocab_size), np.float32)
    model.forward_batch(slots, tokens, [2] * len(slots), logits, starts=starts, blocks=blocks, alone=alone)
    return np.split(logits, np.cumsum([len(t) for t in tokens])[:-1])


@pytest.mark.parametrize("name", ["llama_tensor", "qwen3", "qwen2", "llama_row_odd_sizes", "low_rank"])
@pytest.mark.parametrize("block", [2, 8, 32])
def test_blocks_equal_the_reference(toys: dict[str, Path], name: str, block: int) -> None:
    # Tolerances as in test_engine_logits.py: EXACT for the median row of the median text, FLIPPED for one behind a
    # rounding tie. The last block is not full. A causal pass is off by as much as the logits' spread.
    reference = ReferenceModel(toys[name], kv_dtype=np.float32)
    models = [_native.Model.load(str(toys[name]), kernels=k, kv_type="float32", threads=1) for k in KERNELS]
    errors: list[list[Any]] = [[] for _ in models]
    for seed in range(3):
        tokens = some_tokens(45, seed)
        reference.block = block
        wanted = reference.logits([int(token) for token in tokens])
        reference.block = 1
        causal = reference.logits([int(token) for token in tokens])
        assert np.median(relative_errors(causal, wanted)) > 0.2
        for model, found in zip(models, errors, strict=True):
            model.truncate(0, 0)
            found.append(relative_errors(run(model, (0, tokens, -1, block, False))[0], wanted))
    for found in errors:
        assert np.median(np.median(found, axis=1)) < EXACT
        assert np.max(found) < FLIPPED


@pytest.mark.parametrize(("name", "kernels"), pairs(PLAIN))
def test_rows_computed_anew_are_those_of_a_fresh_sequence(toys: dict[str, Path], name: str, kernels: str) -> None:
    model = _native.Model.load(str(toys[name]), kernels=kernels, threads=1, slots=2)
    old, new = some_tokens(60, 1), some_tokens(60, 2)
    for block in (1, 8):
        model.truncate(0, 0), model.truncate(1, 0)
        (wanted,) = run(model, (0, np.concatenate([old[:16], new[16:40], old[40:48]]), -1, block, False))
        run(model, (1, old[:48], -1, block, False))
        (found,) = run(model, (1, new[16:40], 16, block, False))
        assert model.length(1) == 48
        np.testing.assert_array_equal(found, wanted[16:40])
        (again,) = run(model, (1, old[40:48], 40, block, False))
        np.testing.assert_array_equal(again, wanted[40:])


@pytest.mark.parametrize("kv_type", ["float16", "float32", "int8"])
@pytest.mark.parametrize(("name", "kernels"), pairs(TOYS))
def test_rows_alone_equal_single_tokens(toys: dict[str, Path], name: str, kernels: str, kv_type: str) -> None:
    model = _native.Model.load(str(toys[name]), kernels=kernels, threads=1, slots=2, kv_type=kv_type)
    tokens = some_tokens(40, 3)
    wanted = np.concatenate([run(model, (0, tokens[t : t + 1], -1, 1, False))[0] for t in range(40)])
    done = 0
    for count in (1, 2, 5, 13, 19):
        (found,) = run(model, (1, tokens[done : done + count], -1, 1, True))
        np.testing.assert_array_equal(found, wanted[done : done + count])
        done += count


def test_rows_alone_equal_single_tokens_far_behind(toys: dict[str, Path]) -> None:
    # behind 256 positions a query's keys come in several ranges
    model = _native.Model.load(str(toys["qwen3"]), threads=3, slots=2)
    tokens = some_tokens(500, 4)
    for slot in (0, 1):
        model.forward(slot, tokens[:250])
    wanted = np.concatenate([run(model, (0, tokens[t : t + 1], -1, 1, False))[0] for t in range(250, 500)])
    np.testing.assert_array_equal(run(model, (1, tokens[250:], -1, 1, True))[0], wanted)
    for count in (3, 9):  # few rows share their ranges out between threads when they are single
        np.testing.assert_array_equal(
            run(model, (1, tokens[400 : 400 + count], 400, 1, True))[0], wanted[150 : 150 + count]
        )


@pytest.mark.parametrize("clean", [1, 8])
@pytest.mark.parametrize(("name", "kernels"), pairs(PLAIN))
def test_a_finished_block_and_the_next_one_in_one_pass(
    toys: dict[str, Path], name: str, kernels: str, clean: int
) -> None:
    model = _native.Model.load(str(toys[name]), kernels=kernels, threads=1, slots=4)
    prompt, final, masks, other = (some_tokens(n, s) for n, s in ((16, 5), (8, 6), (8, 7), (11, 8)))
    for slot in (0, 1):
        run(model, (slot, prompt, -1, clean, False))
        run(model, (slot, masks, 16, 8, False))
    for slot in (2, 3):
        run(model, (slot, other[:10], -1, 1, False))
    separate = [
        run(model, (0, final, 16, clean, False))[0],
        run(model, (2, other[10:], -1, 1, False))[0],
        run(model, (0, masks, -1, 8, False))[0],
    ]
    joint = run(model, (1, final, 16, clean, False), (3, other[10:], -1, 1, False), (1, masks, -1, 8, False))
    for found, wanted in zip(joint, separate, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert [model.length(slot) for slot in range(4)] == [32, 32, 11, 11]


def test_a_single_row_behind_a_single_row_in_one_pass(toys: dict[str, Path]) -> None:
    # one row of a slot stores its key while it attends, unless another row of the pass needs it
    model = _native.Model.load(str(toys["qwen3"]), threads=3, slots=2)
    tokens = some_tokens(300, 9)
    for slot in (0, 1):
        model.forward(slot, tokens[:298])
    wanted = [run(model, (0, tokens[t : t + 1], -1, 1, False))[0] for t in (298, 299)]
    found = run(model, (1, tokens[298:299], -1, 1, False), (1, tokens[299:], -1, 1, False))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("threads", [1, 3])
def test_where_a_pass_ends_changes_nothing(toys: dict[str, Path], threads: int) -> None:
    model = _native.Model.load(str(toys["llama_tensor"]), threads=threads, slots=6, context=512)
    assert model.pass_rows == 256
    tokens, others = some_tokens(300, 10), some_tokens(300, 11)
    for block, alone in ((1, False), (8, False), (32, False), (1, True), (8, True)):
        for slot in range(6):
            model.truncate(slot, 0)
        (wanted,) = run(model, (0, tokens, -1, block, alone))
        for slot, before in ((1, 250), (2, 3), (3, 217)):
            found = run(model, (5, others[:before], 0, 1, False), (slot, tokens, -1, block, alone))[1]
            np.testing.assert_array_equal(found, wanted)
        parts = [run(model, (4, tokens[i : i + 32], -1, block, alone))[0] for i in range(0, 300, 32)]
        np.testing.assert_array_equal(np.concatenate(parts), wanted)


def test_single_rows_of_a_block(toys: dict[str, Path]) -> None:
    # a row computed anew sees the whole block as it stands
    model = _native.Model.load(str(toys["llama_tensor"]), threads=3, slots=2)
    tokens = some_tokens(32, 12)
    run(model, (0, tokens, -1, 16, False)), run(model, (1, tokens, -1, 16, False))
    (wanted,) = run(model, (0, tokens[16:], 16, 16, False))
    for row in (17, 30, 31):
        np.testing.assert_array_equal(run(model, (1, tokens[row : row + 1], row, 16, False))[0][0], wanted[row - 16])


def test_wanted_rows(toys: dict[str, Path]) -> None:
    engine = Engine.load(toys["qwen3"], slots=3)
    prompt = some_tokens(300, 13)
    wanted = engine.logits(prompt)
    with Batch(engine) as batch:
        a, b = batch.open(), batch.open()
        some, none, last = batch.step(
            [BatchItem(a, prompt, [0, 3, 254, 255, 256, 299]), BatchItem(b, prompt[:5], []), BatchItem(b, prompt[5:9])]
        )
        np.testing.assert_array_equal(some, wanted[[0, 3, 254, 255, 256, 299]])
        assert none.shape == (0, engine.vocab_size)
        np.testing.assert_array_equal(last, wanted[8:9])
        assert (batch.length(a), batch.length(b)) == (300, 9)


def check_choices(rows: Rows, found: Any) -> None:
    """Against float64's softmax of the same logits.

    2e-5: a sum over a piece of the vocabulary has chains of at most 64 float32 additions, 4e-6 of it, beside the
    exponential's 2e-7. The entropy is ln Z - S / Z with such an error in Z and in S, and -S / Z is at most itself.
    """
    logits = found.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = weights / weights.sum(axis=1, keepdims=True)
    entropy = -(shares * np.log(shares)).sum(axis=1)
    np.testing.assert_array_equal(rows.tokens, logits.argmax(axis=1))
    np.testing.assert_allclose(rows.probability, shares.max(axis=1), rtol=2e-5)
    np.testing.assert_allclose(rows.entropy, entropy, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "kernels"), pairs(["llama_tensor", "untied_q4_head", "llama_group_64", "untied_f16_head"])
)
def test_choices_are_those_of_the_softmax(toys: dict[str, Path], name: str, kernels: str) -> None:
    engine = Engine.load(toys[name], slots=2, kernels=kernels, threads=1)
    with Batch(engine) as batch:
        a, b = batch.open(), batch.open()
        items = [BatchItem(a, some_tokens(70, 14), "all", block=8), BatchItem(b, some_tokens(7, 15), [0, 6])]
        found = batch.choose(items, logits=True)
        batch.truncate(a, 0), batch.truncate(b, 0)
        again = batch.choose(items)
    for rows, without in zip(found, again, strict=True):
        assert rows.logits is not None and without.logits is None
        check_choices(rows, rows.logits)
        for one, other in zip(
            (rows.tokens, rows.probability, rows.entropy),
            (without.tokens, without.probability, without.entropy),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)


def test_choices_do_not_depend_on_threads_or_company(tmp_path: Path) -> None:
    # a vocabulary of several pieces, the last one short; more rows than are held at once; equal logits
    config = {**toy_config("llama_tensor"), "vocab_size": 2500}
    directory = write_toy(tmp_path, config, "tensor", 64, seed=0)
    tokens = some_tokens(90, 20, 2500)
    found = []
    for threads, others in ((1, 0), (3, 0), (2, 7), (1, 40)):
        engine = Engine.load(directory, threads=threads, slots=2)
        with Batch(engine) as batch:
            items = [BatchItem(batch.open(), tokens, "all", block=32)]
            if others:
                items.insert(0, BatchItem(batch.open(), tokens[:others], "all"))
            found.append(batch.choose(items)[-1])
            slot = items[-1].slot
            batch.truncate(slot, 0)
            (logits,) = batch.step([items[-1]])
    for rows in found:
        check_choices(rows, logits)
        np.testing.assert_array_equal(rows.probability, found[0].probability)
        np.testing.assert_array_equal(rows.entropy, found[0].entropy)
    assert len(set(found[0].tokens.tolist())) > 30 and (found[0].tokens >= 2048).any()


@pytest.mark.parametrize("place", [0, 5, 1023, 1024])
def test_of_equal_logits_the_lower_token_is_best(tmp_path: Path, place: int) -> None:
    # two equal rows of the embedding, in one piece of the vocabulary or in two, have equal logits
    config = {**toy_config("llama_tensor"), "vocab_size": 1100}
    directory = write_toy(tmp_path, config, "tensor", 64, seed=0, equal=(place, 1050))
    engine = Engine.load(directory, threads=1)
    with Batch(engine) as batch:
        (rows,) = batch.choose([BatchItem(batch.open(), np.arange(1100)[-400:], "all")], logits=True)
    assert rows.logits is not None
    np.testing.assert_array_equal(rows.logits[:, place], rows.logits[:, 1050])
    assert (rows.tokens == place).any() and not (rows.tokens == 1050).any()
    np.testing.assert_array_equal(rows.tokens, rows.logits.argmax(axis=1))


def test_weights_that_give_no_numbers_are_named(tmp_path: Path) -> None:
    directory = make_toy(tmp_path, "untied_f16_head")
    tensors = {**load_file(directory / "model.safetensors")}
    tensors["model.norm.weight"][:] = 3e38
    write_safetensors(directory / "model.safetensors", tensors)
    with Batch(Engine.load(directory, threads=1)) as batch, pytest.raises(FormatError, match="no numbers"):
        batch.choose([BatchItem(batch.open(), [1, 2, 3])])
