"""ROUGE and BLEU of written summaries against references, in points from 0 to 100."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)")


def rouge(reference: str, hypothesis: str) -> dict[str, float]:
    """Return the F-measures of one pair, with Porter's stemmer as published figures have them.

    rougeLsum compares sentence by sentence: a line is one, and a line is parted after ``.``, ``!`` and ``?``.

    Source: Lin 2004 (W04-1013) as Google's rouge-score computes it.
    Differs: sentences come from a rule of one line, not from nltk, whose model would have to be downloaded.
    """
    found = _scorer().score(sentences(reference), sentences(hypothesis))
    return {name: 100.0 * float(found[name].fmeasure) for name in ROUGE}


def bleu(pairs: Sequence[tuple[str, str]]) -> float:
    """Return the BLEU of (reference, hypothesis) pairs together, by sacreBLEU's defaults (13a tokens, smoothing exp).

    Source: Post 2018 (W18-6319). Differs: it is the corpus' figure, not a mean over pairs, as BLEU is defined.
    """
    import sacrebleu

    references, hypotheses = ([_one_line(pair[i]) for pair in pairs] for i in (0, 1))
    return float(sacrebleu.corpus_bleu(hypotheses, [references]).score)


def sentences(text: str) -> str:
    """Return a text with one sentence a line, without empty ones."""
    lines = (piece.strip() for line in text.splitlines() for piece in _SENTENCE_END.split(line))
    return "\n".join(line for line in lines if line)


def _one_line(text: str) -> str:
    return " ".join(text.split())


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=True)
