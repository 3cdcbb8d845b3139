"""Server-sent events as a test reads them."""

from __future__ import annotations

import json
from typing import Any

import httpx


def chunks(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask for a stream and return its JSON events; the last must be [DONE]."""
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        events = response.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(one.removeprefix("data: ")) for one in events[:-2] if not one.startswith(":")]
