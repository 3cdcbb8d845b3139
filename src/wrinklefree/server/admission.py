"""Who comes next where not all can be served: clients in turn, each in the order of its arrivals."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue in which a client with many entries does not hold up one with few. Not for several threads at once."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._clients: OrderedDict[str, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for entries in self._clients.values():
            yield from entries

    def push(self, client: str, entry: T) -> None:
        """Add an entry; a client that is new comes behind the others."""
        self._clients.setdefault(client, deque()).append(entry)
        self._count += 1

    def pop(self) -> T:
        """Remove and return the first entry of the client whose turn it is. Raises: IndexError when there is none."""
        if not self._clients:
            raise IndexError("pop from an empty queue")
        client, entries = next(iter(self._clients.items()))
        entry = entries.popleft()
        self._count -= 1
        if entries:
            self._clients.move_to_end(client)
        else:
            del self._clients[client]
        return entry

    def discard(self, client: str, entry: T) -> bool:
        """Remove an entry; False when it is not there."""
        entries = self._clients.get(client)
        if entries is None or entry not in entries:
            return False
        entries.remove(entry)
        self._count -= 1
        if not entries:
            del self._clients[client]
        return True
