"""The data stream against its promises: sequence k depends on (seed, k, weight history) and on nothing else.

Compared: any way of cutting the consumption against reading it at once; packed rows against the documents they were
cut from; ranks against one rank; an epoch against the set of all sequences; mixture shares against exact quotas.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_toys import EOS, byte_encoder, toy_documents, toy_sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, TokenBatch
from wrinklefree.data.mixture import BLOCK, Mixture
from wrinklefree.data.packing import PackedSequences
from wrinklefree.data.permutation import permute
from wrinklefree.data.stream import PackedStream
from wrinklefree.data.tokens import tokenize
from wrinklefree.errors import InputError

FIELDS = ("input_ids", "labels", "position_ids", "document_ids")


def same(left: TokenBatch, right: TokenBatch) -> bool:
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in FIELDS)


def joined(parts: list[TokenBatch]) -> TokenBatch:
    return TokenBatch(*(torch.cat([getattr(p, name) for p in parts]) for name in FIELDS))


@given(size=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_permutation_is_one_to_one(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_permutation_is_the_same_for_ever() -> None:
    # Golden values: a checkpoint's position means nothing if another version deals another order.
    assert permute(np.arange(10), 10, 1234).tolist() == [7, 2, 6, 4, 1, 0, 8, 3, 9, 5]


def test_permutation_depends_on_the_key_and_moves_things() -> None:
    first, second = (permute(np.arange(1000), 1000, key) for key in (1, 2))
    assert (first == second).sum() < 20
    # A uniform permutation has on average one fixed point and a rank correlation near zero.
    assert (first == np.arange(1000)).sum() < 10
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.15


@given(seed=st.integers(0, 9), start=st.integers(0, 100), cuts=st.lists(st.integers(1, 7), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_any_split_of_the_consumption_gives_the_same_sequences(seed: int, start: int, cuts: list[int]) -> None:
    whole = PackedStream([toy_sequences(30)], seed).batch(start, sum(cuts))
    stream, parts, at = PackedStream([toy_sequences(30)], seed), [], start
    for cut in cuts:
        parts.append(stream.batch(at, cut))
        at += cut
    assert same(joined(parts), whole)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_together_see_the_batch_of_one_rank(world_size: int) -> None:
    stream = PackedStream([toy_sequences(30)], 3)
    whole = stream.batch(5, 12)
    ranks = [stream.batch(5, 12, rank, world_size) for rank in range(world_size)]
    interleaved = torch.stack([part.input_ids for part in ranks], dim=1).flatten(0, 1)
    assert torch.equal(interleaved, whole.input_ids)


@pytest.mark.parametrize(("size", "rank", "world_size"), [(0, 0, 1), (3, 0, 2), (4, 2, 2), (4, -1, 2)])
def test_uneven_batches_are_refused(size: int, rank: int, world_size: int) -> None:
    with pytest.raises(InputError, match="divide evenly"):
        PackedStream([toy_sequences(3)]).batch(0, size, rank, world_size)


def test_every_epoch_covers_every_sequence_once_in_another_order() -> None:
    stream = PackedStream([toy_sequences(40)], 7)
    n = stream.num_sequences
    epochs = [[stream.locate(k)[1] for k in range(e * n, (e + 1) * n)] for e in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != [PackedStream([toy_sequences(40)], 8).locate(k)[1] for k in range(n)]


@given(count=st.integers(1, 12), length=st.integers(2, 40), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_packing_keeps_every_token_and_isolates_documents(count: int, length: int, seed: int) -> None:
    documents = toy_documents(count, seed)
    packed = PackedSequences(tokenize(documents, byte_encoder()), length, EOS)
    batch = packed.batch(np.arange(len(packed)))
    real = batch.document_ids != PADDING_DOCUMENT
    expected = [token for document in documents for token in (*document.text.encode(), EOS)]
    assert batch.input_ids[real].tolist() == expected
    assert not real.flatten()[len(expected) :].any()
    for row in range(batch.num_sequences):
        previous = None
        for t in range(length):
            owner, position = int(batch.document_ids[row, t]), int(batch.position_ids[row, t])
            label, token = int(batch.labels[row, t]), int(batch.input_ids[row, t])
            if owner == PADDING_DOCUMENT:
                assert (label, position) == (IGNORE_INDEX, 0)
                continue
            starts = previous is None or previous[0] != owner
            assert position == (0 if starts else previous[1] + 1)
            assert label == (IGNORE_INDEX if starts else token)
            # Within a row the next document starts exactly where the one before ended.
            assert not (starts and previous) or batch.input_ids[row, t - 1] == EOS
            previous = (owner, position)


def test_sequences_need_two_tokens() -> None:
    with pytest.raises(InputError, match="at least 2"):
        toy_sequences(3, length=1)


@given(
    weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=5), seed=st.integers(0, 100), blocks=st.integers(1, 4)
)
@settings(max_examples=30, deadline=None)
def test_mixture_meets_its_shares_and_counts_uses(weights: list[float], seed: int, blocks: int) -> None:
    mixture = Mixture.start(seed, weights)
    used = [0] * len(weights)
    for k in range(blocks * BLOCK):
        source, ordinal = mixture.locate(k)
        assert ordinal == used[source]
        used[source] += 1
    for count, weight in zip(used, mixture.weights, strict=True):
        assert abs(count - weight * blocks * BLOCK) <= 1


def test_mixture_weights_change_at_a_position_and_the_past_stays() -> None:
    before = Mixture.start(5, [1, 1, 2])
    after = before.changed(1500, [0, 3, 1]).changed(2100, [1, 0, 0])
    assert [after.locate(k) for k in range(1500)] == [before.locate(k) for k in range(1500)]
    used = [0, 0, 0]
    for k in range(2500):
        source, ordinal = after.locate(k)
        assert ordinal == used[source]
        used[source] += 1
        assert k < 1500 or source != 0 or k >= 2100
        assert k < 2100 or source == 0


def test_mixture_with_a_zero_weight_never_draws_it() -> None:
    mixture = Mixture.start(1, [0.3, 0.0, 0.7])
    assert {mixture.locate(k)[0] for k in range(3000)} == {0, 2}


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [-1.0, 2.0], [float("nan")], [float("inf")]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError, match="mixture weights"):
        Mixture.start(0, weights)


def test_state_restores_seed_and_weight_history() -> None:
    sources = [toy_sequences(20, seed=1), toy_sequences(35, seed=2)]
    stream = PackedStream(sources, seed=11, weights=[1, 3])
    stream.set_weights([1, 1], position=40)
    other = PackedStream(sources, seed=0)
    other.load_state_dict(stream.state_dict())
    assert same(other.batch(30, 30), stream.batch(30, 30))


def test_state_of_other_data_is_refused() -> None:
    state = PackedStream([toy_sequences(20)]).state_dict()
    with pytest.raises(InputError, match="num_tokens"):
        PackedStream([toy_sequences(21)]).load_state_dict(state)
    with pytest.raises(InputError, match="length"):
        PackedStream([toy_sequences(20, length=8)]).load_state_dict(state)


def test_stream_refuses_nothing_and_mixed_lengths() -> None:
    with pytest.raises(InputError, match="without any sequence"):
        PackedStream([])
    with pytest.raises(InputError, match="lengths differ"):
        PackedStream([toy_sequences(3), toy_sequences(3, length=8)])
    with pytest.raises(InputError, match="2 weights for 1"):
        PackedStream([toy_sequences(3)], weights=[1, 2])
    with pytest.raises(InputError, match="negative"):
        PackedStream([toy_sequences(3)]).locate(-1)
