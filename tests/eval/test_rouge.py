"""ROUGE and BLEU against figures worked out by hand."""

from __future__ import annotations

import math

import pytest

from wrinklefree.eval.rouge import bleu, rouge, sentences

pytest.importorskip("rouge_score", reason="rouge-score is not installed: summaries were not measured")


def test_rouge_by_hand() -> None:
    found = rouge("the cat sat on the mat", "the cat lay on a mat")
    # Words in common: the, cat, on, mat (4 of 6 on both sides); pairs: "the cat" (1 of 5); in order: the same 4.
    assert found["rouge1"] == pytest.approx(100 * 4 / 6)
    assert found["rouge2"] == pytest.approx(100 * 1 / 5)
    assert found["rougeL"] == pytest.approx(100 * 4 / 6)
    # Precision 1, recall 1/2; the stemmer makes one word of "runs" and "running".
    assert rouge("he runs, she sleeps", "running he")["rouge1"] == pytest.approx(100 * 2 / 3)
    assert set(rouge("a", "").values()) == {0.0}


def test_sentences_count_one_by_one() -> None:
    # In another order no long common sequence is left, but each sentence has its own.
    swapped = rouge("One two three. Four five six.", "Four five six. One two three.")
    assert swapped["rougeL"] == pytest.approx(50.0) and swapped["rougeLsum"] == pytest.approx(100.0)
    assert sentences("A b. C d! e?\n\n f 3.5 g") == "A b.\nC d!\ne?\nf 3.5 g"


def test_bleu_by_hand() -> None:
    assert bleu([("the cat sat on the mat", "the cat sat on the mat")]) == pytest.approx(100.0)
    # Five of six words, 4 of 5 pairs, 3 of 4 triples, 2 of 3 quadruples; as long as the reference.
    expected = 100 * math.exp(sum(map(math.log, (5 / 6, 4 / 5, 3 / 4, 2 / 3))) / 4)
    assert bleu([("a b c d e f", "a b c d e x")]) == pytest.approx(expected)
    # Of the corpus, not a mean of pairs: the counts are added first.
    both = bleu([("a b c d e f", "a b c d e x"), ("a b c d e f", "a b c d e f")])
    whole = 100 * math.exp(sum(map(math.log, (11 / 12, 9 / 10, 7 / 8, 5 / 6))) / 4)
    assert both == pytest.approx(whole)
