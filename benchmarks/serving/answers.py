"""What came over a connection, read after the measurement: text, times of its pieces, and whether the form is right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.serving.client import Exchange


@dataclass(frozen=True)
class StreamedAnswer:
    """One chat answer. ``times``: when each piece of text came (`perf_counter`); ``tokens`` as the server counts them.

    ``faults``: what is wrong with the stream's form, which a lost, doubled or foreign event would show.
    """

    number: int
    sent: float
    ended: float
    text: str
    times: tuple[float, ...]
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    faults: tuple[str, ...]

    @property
    def first_seconds(self) -> float:
        """From sending to the first piece of text."""
        return (self.times[0] if self.times else self.ended) - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces of text."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def events(exchange: Exchange) -> Iterator[tuple[float, str]]:
    """Yield moment and data of each server-sent event; comments are left out."""
    body = b""
    for moment, data in _body(exchange):
        body += data
        while (end := body.find(b"\n\n")) >= 0:
            event, body = body[:end], body[end + 2 :]
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield moment, b"\n".join(lines).decode()


def _body(exchange: Exchange) -> Iterator[tuple[float, bytes]]:
    """Yield the body's bytes out of their chunks, with the moment each piece came."""
    raw, head, left = b"", True, 0
    for moment, data in exchange.arrivals:
        raw += data
        if head:
            if (end := raw.find(b"\r\n\r\n")) < 0:
                continue
            raw, head = raw[end + 4 :], False
        while raw:
            if left == 0:
                if (end := raw.find(b"\r\n")) < 0:
                    break
                left, raw = int(raw[:end], 16) + 2, raw[end + 2 :]  # the chunk and the line end behind it
                continue
            piece, raw = raw[:left], raw[left:]
            yield moment, piece[: max(0, left - 2)]
            left -= len(piece)


def streamed(exchange: Exchange, max_tokens: int) -> StreamedAnswer:
    """Read an answer of a streamed chat request that must have exactly ``max_tokens`` tokens."""
    reading = _Reading()
    for moment, data in events(exchange):
        reading.take(moment, data)
    faults = list(reading.faults)
    if exchange.error or exchange.status != 200:
        faults.append(exchange.error or f"status {exchange.status}")
    elif (reading.done, reading.finishes, len(reading.ids)) != (1, ["length"], 1):
        faults.append(
            f"[DONE] {reading.done} times, finish reasons {reading.finishes}, {len(reading.ids)} ids in one stream"
        )
    elif reading.usage.get("completion_tokens") != max_tokens:
        faults.append(f"{reading.usage.get('completion_tokens')} tokens instead of {max_tokens}")
    usage = reading.usage
    return StreamedAnswer(
        exchange.number, exchange.sent, exchange.ended, "".join(reading.texts), tuple(reading.times),
        int(usage.get("prompt_tokens", 0)),
        int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        int(usage.get("completion_tokens", 0)), tuple(faults),
    )  # fmt: skip


def piece_times(exchange: Exchange) -> list[float]:
    """Return when each piece of text came, also of an answer that was broken off."""
    reading = _Reading()
    for moment, data in events(exchange):
        reading.take(moment, data)
    return reading.times


@dataclass
class _Reading:
    texts: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    finishes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    done: int = 0

    def take(self, moment: float, data: str) -> None:
        if data == "[DONE]":
            self.done += 1
            return
        chunk = json.loads(data)
        if self.done:
            self.faults.append("an event behind [DONE]")
        if "error" in chunk:
            self.faults.append(f"error in the stream: {chunk['error'].get('message', '')[:200]}")
            return
        self.ids.add(chunk["id"])
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            if text := (choice.get("delta") or {}).get("content"):
                self.texts.append(text)
                self.times.append(moment)
            if choice.get("finish_reason"):
                self.finishes.append(choice["finish_reason"])
