"""Health: whether the process lives, and whether it takes requests; a server that is stopping does not."""

from __future__ import annotations

import pytest
from running_server import RunningServer

from wrinklefree.server.scheduler import Scheduler


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_health(server: RunningServer, path: str) -> None:
    answer = server.client.get(path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    head = server.client.head(path)
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("why", ["stopping", "failure"])
def test_a_server_that_takes_nothing_lives_and_is_not_ready(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    scheduler = server.app.state.server.scheduler
    if why == "stopping":
        monkeypatch.setattr(Scheduler, "stopping", True)
    else:
        monkeypatch.setattr(scheduler, "failure", RuntimeError("the engine's thread has ended"))
    assert server.client.get("/health/live").status_code == 200
    for path in ("/health", "/health/ready"):
        answer = server.client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
        assert int(answer.headers["retry-after"]) >= 1
