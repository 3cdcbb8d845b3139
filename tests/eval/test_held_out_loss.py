"""Held-out loss and agreement against torch's cross-entropy and KL, and windows against what they promise.

Promises: every token except a document's first is scored at most once, at stride < window exactly once; a packed
data set's windows are its labels; pieces of logits give what the whole gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wrinklefree.data.batch import IGNORE_INDEX
from wrinklefree.data.document import Document
from wrinklefree.data.packing import PackedSequences
from wrinklefree.data.python_docs import HELD_OUT_TOPICS
from wrinklefree.data.tokens import TextEncoder, tokenize
from wrinklefree.errors import InputError
from wrinklefree.eval.loss import LogitsFunction, agreement, held_out_loss, token_losses, torch_logits
from wrinklefree.eval.text import EvaluationText, evaluation_documents, evaluation_text, from_packed

VOCABULARY = 257


def encode(text: str) -> list[int]:
    return list(text.encode())


def toy(seed: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    """A bigram model with a memory of the window's length so far, so that context changes its logits."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(VOCABULARY, VOCABULARY, generator=generator)
    drift = torch.randn(VOCABULARY, generator=generator)
    return lambda ids: table[ids] + torch.arange(ids.shape[1])[None, :, None] * 0.01 * drift


def a_text(window: int = 16, stride: int | None = None) -> EvaluationText:
    documents = [Document("a", "the first document, of some length"), Document("b", "x"), Document("c", "straße")]
    return evaluation_text(documents, encode, window, stride, "toy")


def test_loss_is_torchs_cross_entropy() -> None:
    text, model = a_text(), toy()
    total = torch.zeros((), dtype=torch.float64)
    for window in text.windows:
        ids = torch.from_numpy(window.tokens)
        logits = model(ids[None])[0].double()
        total += torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")
    report = held_out_loss(torch_logits(model), text)
    # Both are float64 sums of fewer than a hundred terms of size ten.
    assert report.loss == pytest.approx(float(total) / text.num_scored, rel=1e-13)
    assert report.perplexity == pytest.approx(math.exp(report.loss))
    # 34 tokens in windows of 16, 16 and 2 score 15 + 15 + 1; "x" alone scores none; 7 bytes of "straße" score 6.
    assert (report.tokens, report.windows) == (37, 4)
    assert report.bits_per_byte == pytest.approx(report.loss / math.log(2))  # a byte is a token here


def test_uniform_logits_give_the_logarithm_of_the_vocabulary() -> None:
    report = held_out_loss(lambda ids: np.full((len(ids), VOCABULARY), 3.0, np.float32), a_text())
    assert report.loss == pytest.approx(math.log(VOCABULARY), rel=1e-14)


def test_bits_per_byte_counts_bytes_not_tokens() -> None:
    two_bytes = evaluation_text([Document("a", "ab" * 20)], lambda text: [ord(c) for c in text[::2]], 64)
    report = held_out_loss(torch_logits(toy()), two_bytes)
    assert report.bits_per_byte == pytest.approx(report.loss / math.log(2) / 2)


def test_pieces_of_logits_give_what_the_whole_gives() -> None:
    whole = torch_logits(toy())

    def pieces(ids: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        memory = np.empty((3, VOCABULARY), np.float32)  # used again, as an engine does
        found = np.asarray(whole(ids))
        for at in range(0, len(found), 3):
            part = found[at : at + 3]
            memory[: len(part)] = part
            yield memory[: len(part)]

    for stride in (16, 5):
        text = a_text(16, stride)
        # The same float64 terms, summed in another order.
        assert held_out_loss(pieces, text).loss == pytest.approx(held_out_loss(whole, text).loss, rel=1e-13)
        assert agreement(pieces, torch_logits(toy(1)), text) == agreement(whole, torch_logits(toy(1)), text)


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    window=st.integers(2, 20),
    stride=st.integers(1, 20),
)
@settings(max_examples=200, deadline=None)
def test_windows_score_each_token_once_with_the_promised_context(lengths: list[int], window: int, stride: int) -> None:
    # Token ids are places in all documents together, so that a window shows where it was cut.
    places = iter(np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1]))
    documents = [Document(f"{i}", "x") for i in range(len(lengths))]

    def numbers(text: str) -> list[int]:
        return next(places).tolist()

    stride = min(stride, window)
    firsts = set(np.concatenate([[0], np.cumsum(lengths)[:-1]]).tolist())
    if max(lengths) < 2:
        with pytest.raises(InputError, match="needs 2 to be scored"):
            evaluation_text(documents, numbers, window, stride)
        return
    text = evaluation_text(documents, numbers, window, stride)
    scored = [int(token) for w in text.windows for token in w.tokens[w.scored_from :]]
    assert len(scored) == len(set(scored)) == text.num_scored
    for w in text.windows:
        assert 2 <= len(w.tokens) <= window and 1 <= w.scored_from < len(w.tokens)
        assert np.array_equal(w.tokens, np.arange(w.tokens[0], w.tokens[0] + len(w.tokens)))
        assert firsts.isdisjoint(w.tokens[1:].tolist())  # never two documents in a window
        if w.tokens[0] not in firsts:
            assert w.scored_from >= window - stride
    missing = set(range(sum(lengths))) - set(scored)
    if stride < window:
        assert missing == {f for f, n in zip(np.cumsum([0, *lengths]), lengths, strict=False) if n}
    else:
        assert len(missing) >= sum(n > 0 for n in lengths)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), length=st.integers(2, 17))
@settings(max_examples=100, deadline=None)
def test_packed_windows_are_the_labels_of_the_batch(lengths: list[int], length: int) -> None:
    documents = [Document(f"{i}", chr(97 + i) * n) for i, n in enumerate(lengths)]
    packed = PackedSequences(tokenize(documents, TextEncoder(encode, 256)), length, 256)
    batch = packed.batch(np.arange(len(packed)))
    targets = batch.labels[batch.labels != IGNORE_INDEX].tolist()
    if not targets:
        with pytest.raises(InputError, match="no sequence holds two"):
            from_packed(packed)
        return
    text = from_packed(packed)
    assert [int(t) for w in text.windows for t in w.tokens[w.scored_from :]] == targets
    assert held_out_loss(torch_logits(toy()), text).bits_per_byte is None


def test_limited_text_is_spread_out() -> None:
    text = evaluation_text([Document("a", "abcdefgh" * 100)], lambda t: list(range(len(t))), 10)
    few = text.limited(45)
    starts = [int(w.tokens[0]) for w in few.windows]
    assert len(starts) == 5 and starts == [80, 240, 400, 560, 720]
    assert len(text.limited(1).windows) == 1
    assert text.limited(10**9).windows == text.windows


def test_agreement_is_torchs_kl_and_counts_first_places() -> None:
    text, one, other = a_text(12, 4), toy(0), toy(1)
    kl, same, flips, right, also = 0.0, 0, 0, 0, 0
    for window in text.windows:
        ids = torch.from_numpy(window.tokens)
        for place in range(window.scored_from, len(ids)):
            p, q = (m(ids[None])[0, place - 1].double() for m in (one, other))
            kl += float(
                torch.nn.functional.kl_div(q.log_softmax(0), p.log_softmax(0), log_target=True, reduction="sum")
            )
            first, second, target = int(p.argmax()), int(q.argmax()), int(ids[place])
            same += first == second
            flips += (first == target) != (second == target)
            right, also = right + (first == target), also + (second == target)
    found = agreement(torch_logits(one), torch_logits(other), text)
    assert found.kl * found.tokens == pytest.approx(kl, rel=1e-12)
    counted = (found.top1, found.flips, found.teacher_accuracy, found.student_accuracy)
    assert [round(value * found.tokens) for value in counted] == [same, flips, right, also]


def test_agreement_of_a_model_with_itself() -> None:
    found = agreement(torch_logits(toy()), torch_logits(toy()), a_text())
    assert (found.kl, found.top1, found.flips) == (0.0, 1.0, 0.0)
    assert found.teacher_accuracy == found.student_accuracy


def test_agreement_survives_excluded_tokens() -> None:
    def masked(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = np.zeros((len(ids), VOCABULARY), np.float32)
        rows[:, 200:] = -np.inf
        return rows

    text = a_text()
    assert agreement(masked, lambda ids: np.zeros((len(ids), VOCABULARY), np.float32), text).kl == pytest.approx(
        math.log(VOCABULARY / 200)
    )


def test_token_losses_of_extreme_logits_stay_exact() -> None:
    rows = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    assert token_losses(rows, np.array([0, 0])).tolist() == [0.0, 2e4]
    assert token_losses(rows[:0], np.zeros(0, np.int64)).tolist() == []


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (lambda ids: np.zeros((len(ids) - 1, VOCABULARY), np.float32), "found 15 rows for 16 tokens"),
        (lambda ids: np.zeros((len(ids), 20), np.float32), "V above token"),
        (lambda ids: np.zeros(len(ids), np.float32), r"needed is \[T, V\]"),
    ],
)
def test_wrong_logits_are_refused(logits: LogitsFunction, message: str) -> None:
    with pytest.raises(InputError, match=message):
        held_out_loss(logits, a_text())


def test_logits_that_are_not_finite_are_an_error() -> None:
    def broken(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.full((len(ids), VOCABULARY), np.nan, np.float32)

    with pytest.raises(ArithmeticError, match="window 1 of 4: the logits are not finite"):
        held_out_loss(broken, a_text())
    with pytest.raises(ArithmeticError, match="not finite"):
        agreement(broken, torch_logits(toy()), a_text())


def test_vocabularies_must_be_equal_to_agree() -> None:
    with pytest.raises(InputError, match="teacher has 300 logits per token, the student 257"):
        agreement(lambda ids: np.zeros((len(ids), 300), np.float32), torch_logits(toy()), a_text())


@pytest.mark.parametrize(
    ("text", "window", "stride", "message"),
    [
        ("a", 16, None, "1 tokens in 1 documents"),
        ("abc", 1, None, "must hold 2 tokens"),
        ("abc", 8, 0, "stride 0"),
        ("abc", 8, 9, "stride 9"),
    ],
)
def test_texts_that_cannot_be_scored(text: str, window: int, stride: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluation_text([Document("a", text)], encode, window, stride, "name")


def test_python_docs_are_the_held_out_topics() -> None:
    assert {document.id for document in evaluation_documents("python-docs")} == set(HELD_OUT_TOPICS)
