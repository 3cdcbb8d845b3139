"""/metrics read by Prometheus's own parser: what it counts is what was asked and answered in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser
from running_server import MODEL, RunningServer

from wrinklefree.server.metrics import _cumulative
from wrinklefree.server.statistics import Distribution
from wrinklefree.version import __version__

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(server: RunningServer) -> Samples:
    answer = server.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = parser.text_string_to_metric_families(answer.text)
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def change(before: Samples, after: Samples, name: str, **labels: str) -> float:
    key = (f"wrinklefree_{name}", tuple(sorted(labels.items())))
    return after[key] - before.get(key, 0.0)


def until(server: RunningServer, done: Callable[[Samples], bool]) -> Samples:
    """What ends with an answer may be counted a moment behind it."""
    for _ in range(400):
        found = read(server)
        if done(found):
            return found
        time.sleep(0.02)
    raise AssertionError("the metrics never said so")


def test_requests_and_tokens_are_counted(server: RunningServer) -> None:
    before = read(server)
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    for text in ("one", "another text"):
        body = {"model": MODEL, "prompt": text, "max_tokens": 7, "temperature": 0, "ignore_eos": True}
        answer = server.client.post("/v1/completions", json=body)
        for name in usage:
            usage[name] += answer.json()["usage"][name]
    assert server.client.post("/v1/completions", json={"prompt": 3}).status_code == 400
    assert server.client.post("/v1/embeddings", json={"input": "some"}).status_code == 200
    assert server.client.get("/made/up").status_code == 404
    assert server.client.request("TRACE", "/health").status_code == 405

    after = until(server, lambda found: change(before, found, "answers_total", end="embedded") == 1)
    route = {"route": "/v1/completions", "method": "POST"}
    assert change(before, after, "requests_total", status="200", **route) == 2
    assert change(before, after, "requests_total", status="400", **route) == 1
    assert change(before, after, "requests_total", route="unknown", method="GET", status="404") == 1
    assert change(before, after, "requests_total", route="/health", method="other", status="405") == 1
    assert change(before, after, "answers_total", end="length") == 2
    assert change(before, after, "generated_tokens_total") == usage["completion_tokens"] == 14
    embedded = len(server.engine.tokenizer.encode("some"))
    assert change(before, after, "prompt_tokens_total") == usage["prompt_tokens"] + embedded
    assert change(before, after, "first_token_seconds_count") == 2
    assert change(before, after, "between_tokens_seconds_count") == 12
    assert change(before, after, "tokens_per_forward_sum") == 2
    assert change(before, after, "passes_total") >= 7
    assert after[("wrinklefree_requests_in_progress", ())] == 1  # this one


def test_what_is_running(server: RunningServer) -> None:
    found = read(server)
    (build,) = [dict(labels) for name, labels in found if name == "wrinklefree_build_info"]
    assert (build["version"], build["model"], build["context"]) == (__version__, MODEL, "512")
    assert build["kernels"] == server.engine.kernels_name
    values = {name.removeprefix("wrinklefree_"): value for (name, labels), value in found.items() if not labels}
    assert (values["slots"], values["queue_limit"], values["ready"]) == (4, 64, 1)
    assert (values["running"], values["waiting"]) == (0, 0)
    assert values["process_resident_memory_bytes"] > 1 << 20
    assert values["process_open_fds"] > 3


def test_openmetrics_when_it_is_asked_for(server: RunningServer) -> None:
    accept = "application/openmetrics-text; version=1.0.0"
    answer = server.client.get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families: Any = openmetrics_parser.text_string_to_metric_families(answer.text)
    assert "wrinklefree_generated_tokens" in {family.name for family in families}


def test_buckets_count_all_numbers_up_to_their_bound() -> None:
    found = Distribution((0.5, 1.0, 2.0))
    for value in (0.1, 0.5, 0.7, 5.0):
        found.add(value)
    assert _cumulative(found) == ([("0.5", 2.0), ("1", 3.0), ("2", 3.0), ("+Inf", 4.0)], 6.3)


def test_what_the_prefix_cache_saves(server: RunningServer) -> None:
    before, cached = read(server), 0
    for ending in ("first", "second"):
        body = {"model": MODEL, "prompt": "the same long beginning of a prompt, " * 6 + ending, "max_tokens": 2}
        cached += server.client.post("/v1/completions", json=body).json()["usage"]["prompt_tokens_details"][
            "cached_tokens"
        ]
    assert cached >= 200
    assert change(before, read(server), "cached_prompt_tokens_total") == cached
