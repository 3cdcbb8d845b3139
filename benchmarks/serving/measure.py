"""One phase of load and its figures; and whether answers of a crowd are those of the same requests alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from benchmarks.serving.answers import StreamedAnswer, streamed
from benchmarks.serving.client import Exchange, ask
from benchmarks.serving.load import closed, prepared
from benchmarks.serving.machine import Meter
from benchmarks.serving.requests import Workload
from benchmarks.serving.servers import ServerProcess

QUANTILES = (0.5, 0.95, 0.99)
SHOWN_FAULTS = 5


def phase(
    server: ServerProcess, workload: Workload, streams: int, seconds: float, numbers: Iterator[int]
) -> tuple[dict[str, Any], list[StreamedAnswer]]:
    """Load a server with ``streams`` streams for ``seconds``; return figures (JSON) and the answers."""
    meter = Meter(server)
    start = perf_counter()
    exchanges = asyncio.run(closed(server.address, workload, streams, seconds, numbers, at_least=streams))
    used = meter.read()
    answers = [streamed(exchange, workload.max_tokens) for exchange in exchanges]
    begin = min(answer.sent for answer in answers)
    found = figures(answers, begin, max(begin + seconds, min(answer.ended for answer in answers)))
    return {"streams": streams, "seconds": perf_counter() - start, "used": used, **found}, answers


def figures(answers: Sequence[StreamedAnswer], begin: float, end: float) -> dict[str, Any]:
    """Return what answers say: tokens a second between ``begin`` and ``end``, times in milliseconds, faults.

    Speed counts pieces of text that came in the window, each as the mean tokens of its answer's pieces. Times to the
    first token and between pieces are of whole answers; a piece is one token, unless a server sends several at once
    (``tokens_per_piece``).
    """
    whole = [answer for answer in answers if not answer.faults]
    pieces = sum(len(answer.times) for answer in whole)
    tokens = sum(
        answer.tokens / max(1, len(answer.times)) * sum(begin <= moment <= end for moment in answer.times)
        for answer in whole
    )
    gaps = [gap for answer in whole for gap in answer.gaps]
    faults = [f"request {answer.number}: {fault}" for answer in answers for fault in answer.faults]
    return {
        "requests": len(answers),
        "faulty": len(answers) - len(whole),
        "faults": faults[:SHOWN_FAULTS],
        "tokens_per_second": tokens / max(1e-9, end - begin),
        "tokens_per_piece": sum(answer.tokens for answer in whole) / max(1, pieces),
        "prompt_tokens": sum(answer.prompt_tokens for answer in whole) / max(1, len(whole)),
        "cached_share": sum(a.cached_tokens for a in whole) / max(1, sum(a.prompt_tokens for a in whole)),
        "first_ms": quantiles([answer.first_seconds for answer in whole]),
        "between_ms": quantiles(gaps),
        "whole_ms": quantiles([answer.ended - answer.sent for answer in whole]),
    }


def quantiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Return p50, p95 and p99 in milliseconds; None of nothing."""
    if not seconds:
        return None
    values = np.quantile(np.asarray(seconds), QUANTILES) * 1e3
    return {f"p{100 * q:g}": float(value) for q, value in zip(QUANTILES, values, strict=True)}


def one(server: ServerProcess, workload: Workload, number: int) -> StreamedAnswer:
    """Ask one request, which has the server for itself."""
    data = prepared(server.address, workload, number)
    return streamed(asyncio.run(ask(server.address, data, Exchange(number))), workload.max_tokens)


class Alone:
    """What a server answers when a request has it for itself; asked once for equal requests."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._known: dict[tuple[str, int], str] = {}

    def text(self, workload: Workload, number: int) -> str:
        """Return the text of a request asked alone."""
        key = (str(workload), workload.same(number))
        if key not in self._known:
            answer = one(self._server, workload, number)
            self._known[key] = answer.text if not answer.faults else f"<{'; '.join(answer.faults)}>"
        return self._known[key]

    def compare(self, workload: Workload, answers: Sequence[StreamedAnswer], seconds: float) -> dict[str, Any]:
        """Compare answers of a crowd with those alone, evenly spread ones first, for at most ``seconds``.

        Equal requests are all compared once one of them was asked.
        """
        whole = [answer for answer in answers if not answer.faults]
        stride = max(1, len(whole) // 8)
        order = [answer for first in range(stride) for answer in whole[first::stride]]
        end = perf_counter() + seconds
        compared = 0
        different: list[dict[str, Any]] = []
        for answer in order:
            if perf_counter() > end and (str(workload), workload.same(answer.number)) not in self._known:
                continue
            compared += 1
            alone = self.text(workload, answer.number)
            if alone != answer.text:
                different.append({"number": answer.number, "crowd": answer.text[:300], "alone": alone[:300]})
        return {"compared": compared, "different": len(different), "examples": different[:2]}
