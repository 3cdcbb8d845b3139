"""Reading ahead: with any number of threads and processes the same sequences in the same order, through changes.

The reference is one process without threads whose batches are built when they are asked for. Read-ahead must also
really happen, or the comparison would prove nothing: hits are counted.
"""

from __future__ import annotations

import threading

import pytest
import torch
from data_toys import byte_encoder, toy_documents, toy_sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.data.batch import TokenBatch
from wrinklefree.data.read_ahead import Place, ReadAhead
from wrinklefree.data.stream import PackedStream
from wrinklefree.data.tokens import tokenize
from wrinklefree.errors import InputError

# Position -> weights that are announced there; some lie inside of what is read ahead.
CHANGES = {0: (0.5, 0.3, 0.2), 24: (0.1, 0.1, 0.8), 40: (0.0, 1.0, 0.0), 48: (0.3, 0.3, 0.4)}
END = 80


def stream(workers: int, prefetch: int = 2) -> PackedStream:
    return PackedStream([toy_sequences(30, seed=s) for s in range(3)], 7, (1, 1, 1), workers, prefetch)


def consume(streams: list[PackedStream], start: int, stop: int, size: int = 4) -> list[torch.Tensor]:
    """Each stream is one process; steps of two micro-batches of ``size`` for each, in the loop's order."""
    world, rows = len(streams), []
    step = 2 * size * world
    for position in range(start, stop, step):
        if position in CHANGES:
            for each in streams:
                each.set_weights(CHANGES[position], position)
        for index in range(2):
            for rank, each in enumerate(streams):
                rows.append(each.batch(position + (index * world + rank) * size, size).input_ids)
    return rows


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_workers_and_processes_deals_the_same(workers: int, world: int) -> None:
    reference = torch.cat(consume([stream(0)], 0, END))
    streams = [stream(workers) for _ in range(world)]
    found = torch.cat(consume(streams, 0, END, size=4 // world))
    assert torch.equal(found, reference)
    assert all((each.ahead.hits > 8) == (workers > 0) for each in streams)
    for each in streams:
        each.ahead.close()


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_run_resumed_in_the_middle_goes_on_the_same(workers: int, world: int) -> None:
    reference = torch.cat(consume([stream(0)], 0, END))
    first = [stream(0) for _ in range(world)]
    before = torch.cat(consume(first, 0, 32, size=4 // world))
    first_state = first[0].state_dict()
    resumed = [stream(workers) for _ in range(world)]
    size = 4 // world
    for rank, each in enumerate(resumed):
        for first in (24, 28):  # what was read ahead before the state is loaded must not come out after
            each.batch(first + rank * size, size)
        each.load_state_dict(first_state)
    after = torch.cat(consume(resumed, 32, END, size=4 // world))
    assert torch.equal(torch.cat([before, after]), reference)


@settings(max_examples=25, deadline=None)
@given(
    workers=st.sampled_from([1, 3]), prefetch=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 6), min_size=3, max_size=12),
    changes=st.lists(st.integers(0, 12), max_size=4),
)  # fmt: skip
def test_changes_at_any_position_and_uneven_steps(
    workers: int, prefetch: int, sizes: list[int], changes: list[int]
) -> None:
    """Also when the stride is guessed wrongly all the time, and a change lies within what was read ahead."""
    rows = []
    for each in (stream(0), stream(workers, prefetch)):
        out, position = [], 0
        for number, size in enumerate(sizes):
            if number in changes:
                each.set_weights((number + 1.0, 1.0, 0.0), position + 1)  # in the middle of the batch to come
            out.append(each.batch(position, size).input_ids)
            position += size
        rows.append(torch.cat(out))
        each.ahead.close()
    assert torch.equal(*rows)


def test_only_what_the_change_touches_is_built_again() -> None:
    built: list[tuple[str, Place]] = []
    lock = threading.Lock()

    def build(mixture: str, place: Place) -> TokenBatch:
        with lock:
            built.append((mixture, place))
        return TokenBatch(*[torch.zeros(1, 2, dtype=torch.int64)] * 4)

    ahead = ReadAhead(build, 1, 4)
    for first in (0, 4, 8):
        ahead.batch("old", (first, 4, 0, 1))
    ahead.drop_from(18)  # 12-16 was built ahead and lies before; 16-20 and later do not
    for first in (12, 16, 20):
        ahead.batch("new", (first, 4, 0, 1))
    ahead.close()
    assert built.count(("old", (12, 4, 0, 1))) == 1 and ("new", (12, 4, 0, 1)) not in built
    assert ("new", (16, 4, 0, 1)) in built and ("new", (20, 4, 0, 1)) in built


def test_an_error_comes_out_where_it_belongs() -> None:
    def build(mixture: str, place: Place) -> TokenBatch:
        if place[0] == 8:
            raise InputError("sequence 8 is broken")
        return TokenBatch(*[torch.zeros(1, 2, dtype=torch.int64)] * 4)

    ahead = ReadAhead(build, 2, 3)
    ahead.batch("", (0, 4, 0, 1))
    ahead.batch("", (4, 4, 0, 1))
    with pytest.raises(InputError, match="sequence 8"):
        ahead.batch("", (8, 4, 0, 1))
    ahead.close()
    with pytest.raises(InputError, match="workers"):
        ReadAhead(build, -1, 2)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_tokenise_the_same_array(workers: int) -> None:
    documents, encoder = toy_documents(100), byte_encoder()
    assert tokenize(documents, encoder, None, workers).fingerprint() == tokenize(documents, encoder).fingerprint()
