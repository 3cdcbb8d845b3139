from __future__ import annotations

from running_server import RunningServer


def test_health(server: RunningServer) -> None:
    answer = server.client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
