"""Answers on disk: they come back to the last bit, whatever the order; damage and mix-ups are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train_toys import ToyStream, toy_model

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import FormatError, InputError
from wrinklefree.models.forward import forward
from wrinklefree.teachers.base import TopKOutput
from wrinklefree.teachers.cached import CachedTeacher, CacheKey, row_keys
from wrinklefree.teachers.local import LocalTeacher

KEY = CacheKey("toy", "stream", 5)


def live() -> LocalTeacher:
    return LocalTeacher(lambda: toy_model(3), forward, top_k=5)


def batches() -> list[TokenBatch]:
    return [ToyStream().batch(3 * i, 3) for i in range(4)]


def fill(directory: Path) -> list[TopKOutput]:
    teacher = CachedTeacher(directory, KEY, live(), shard_rows=5, say=lambda text: None)
    answers = [teacher.forward(batch, frozenset()) for batch in batches()]
    teacher.release()
    return answers


def test_what_was_kept_is_what_the_teacher_said_and_it_is_not_asked_again(tmp_path: Path) -> None:
    expected = [live().forward(batch, frozenset()) for batch in batches()]
    first = fill(tmp_path)
    assert len(list(tmp_path.glob("*/shard-*.safetensors"))) == 2
    silent = CachedTeacher(tmp_path, KEY, None, say=lambda text: None)
    backwards = [silent.forward(batch, frozenset()) for batch in reversed(batches())]
    for a, b, c in zip(expected, first, reversed(backwards), strict=True):
        assert torch.equal(a.ids, b.ids.long()) and torch.equal(b.ids, c.ids)
        assert torch.equal(a.log_probs, b.log_probs) and torch.equal(b.log_probs, c.log_probs)
    # Other batch sizes are the same rows.
    one = silent.forward(ToyStream().batch(4, 1), frozenset())
    assert torch.equal(one.log_probs[0], first[1].log_probs[1])
    assert (silent.hits, silent.misses, silent.loaded) == (13, 0, False)


def test_a_row_that_is_not_there_is_asked_for_or_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    new = ToyStream().batch(11, 2)  # one known, one not
    with pytest.raises(InputError, match="does not hold 1 of the 2 sequences"):
        CachedTeacher(tmp_path, KEY, None, say=lambda text: None).forward(new, frozenset())
    again = CachedTeacher(tmp_path, KEY, live(), say=lambda text: None)
    again.forward(new, frozenset())
    assert (again.hits, again.misses) == (1, 1)
    with pytest.raises(InputError, match="needs hidden"):
        again.forward(new, frozenset({"hidden"}))


def test_a_cache_of_something_else_is_not_taken(tmp_path: Path) -> None:
    fill(tmp_path)
    for other in (CacheKey("other", "stream", 5), CacheKey("toy", "texts", 5), CacheKey("toy", "stream", 6)):
        with pytest.raises(InputError, match=r"holds no answers for .* found are answers for teacher toy, data stream"):
            CachedTeacher(tmp_path, other, None)
    (tmp_path / KEY.directory).rename(tmp_path / CacheKey("other", "stream", 5).directory)
    with pytest.raises(FormatError, match=r"is of teacher toy, .* needed is teacher other"):
        CachedTeacher(tmp_path, CacheKey("other", "stream", 5), live())
    with pytest.raises(InputError, match="no answers at all"):
        CachedTeacher(tmp_path / "empty", KEY, None)


def test_damage_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path)
    shard = sorted(tmp_path.glob("*/shard-*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1  # one bit of a log-probability
    shard.write_bytes(data)
    teacher = CachedTeacher(tmp_path, KEY, live(), say=lambda text: None)
    with pytest.raises(FormatError, match="is damaged"):
        for batch in batches():
            teacher.forward(batch, frozenset())
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="is damaged"):
        CachedTeacher(tmp_path, KEY, live())
    shard.unlink()  # what the message says
    fill(tmp_path)


def test_the_same_tokens_in_other_documents_are_another_sequence() -> None:
    batch = ToyStream().batch(0, 1)
    joined = replace(batch, document_ids=batch.document_ids.clamp(max=0))
    assert not torch.equal(joined.document_ids, batch.document_ids)
    assert row_keys(batch) == row_keys(ToyStream().batch(0, 1)) != row_keys(joined)
