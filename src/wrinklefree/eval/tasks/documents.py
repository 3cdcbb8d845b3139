"""Documents that are at hand, as the harness reads a data set."""

from __future__ import annotations

from typing import Any


class Documents(list[dict[str, Any]]):
    """Records with an order, a length and the names of their fields."""

    @property
    def features(self) -> dict[str, Any]:
        return dict.fromkeys(self[0]) if self else {}
