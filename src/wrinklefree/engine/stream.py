"""Stop strings across token borders: text is handed out once it cannot be part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Passes text on, holding back what may be the beginning of a stop string.

    The pieces of `push` and the last of `flush`, joined, are the text before the first stop string. When several
    could match, the one that starts first counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Return the text that is certain now; '' after a stop string was found."""
        if self.stopped:
            return ""
        self._held += text
        starts = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        # An earlier start may still be completing: a longer stop string that begins before the match.
        pending = self._first_possible_start()
        if starts and min(starts) <= pending:
            self.stopped = True
            certain, self._held = self._held[: min(starts)], ""
            return certain
        certain, self._held = self._held[:pending], self._held[pending:]
        return certain

    def flush(self) -> str:
        """Return what was held back; call it when no more text comes."""
        starts = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if starts:
            self.stopped = True
            certain, self._held = self._held[: min(starts)], ""
            return certain
        certain, self._held = self._held, ""
        return certain

    def _first_possible_start(self) -> int:
        """The smallest index from which the held text is a proper prefix of a stop string, or its length."""
        longest = max((len(stop) for stop in self._stops), default=0)
        for start in range(max(0, len(self._held) - longest + 1), len(self._held)):
            tail = self._held[start:]
            if any(len(tail) < len(stop) and stop.startswith(tail) for stop in self._stops):
                return start
        return len(self._held)
