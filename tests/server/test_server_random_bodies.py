"""Any sequence of valid, half valid and senseless requests: no 5xx, always an error object, and the server goes on.

What is compared: a seeded request with the same one again, and behind every sequence a greedy answer with that from the
beginning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from running_server import MODEL, RunningServer, chat_toy, diffusion_chat_toy
from test_server_tools import TEMPLATE

WILD: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]), "content": st.text(max_size=30)}
)
SAMPLING: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(0, 300),
    "min_p": st.floats(0, 1),
    "seed": st.integers(0, 2**63),
    "n": st.integers(1, 3),
    "stop": st.text(min_size=1, max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=4),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.5, 2),
    "logit_bias": st.dictionaries(st.integers(0, 300).map(str), st.floats(-100, 100), max_size=3),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "user": st.text(max_size=8),
    "ignore_eos": st.booleans(),
    "watch": st.booleans(),
    "mode": st.sampled_from(["auto", "ar", "block", "speculative"]),
    "threshold": st.floats(0, 1),
    "window": st.integers(0, 9),
    "sub_block": st.integers(0, 9),
    "tokens_per_forward": st.integers(1, 9),
    "entropy_bound": st.floats(0, 3),
    "guided_regex": st.sampled_from(["[ab]{1,4}", "(x|y)", "[^\\x00-\\x7f]"]),
    "guided_choice": st.just(["yes", "no"]),
    "return_tokens_as_token_ids": st.booleans(),
    "stop_token_ids": st.lists(st.integers(0, 300), max_size=3),
}
FORMATS = st.sampled_from(
    [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
    ]
)
CHAT = SAMPLING | {
    "messages": st.lists(MESSAGE, min_size=1, max_size=4),
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(0, 5),
    "response_format": FORMATS,
    "tools": st.just([TOOL]),
    "tool_choice": st.sampled_from(["none", "auto", "required", {"type": "function", "function": {"name": "look"}}]),
    "parallel_tool_calls": st.booleans(),
}
TEXT = SAMPLING | {
    "prompt": st.text(min_size=1, max_size=30)
    | st.lists(st.integers(0, 257), min_size=1, max_size=20)
    | st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=3),
    "logprobs": st.integers(0, 5),
    "echo": st.booleans(),
}
OTHER = {
    "/v1/embeddings": {
        "input": st.text(min_size=1, max_size=20),
        "encoding_format": st.sampled_from(["float", "base64"]),
    },
    "/tokenize": {"content": st.text(max_size=20)},
    "/detokenize": {"tokens": st.lists(st.integers(0, 257), max_size=9)},
}
ROUTES = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT} | OTHER
NEEDED = {"messages", "prompt", "input", "content", "tokens"}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A route and a body: mostly right, up to two fields wild, at times one that does not exist."""
    path = draw(st.sampled_from(list(ROUTES)))
    fields = ROUTES[path]
    names = draw(st.sets(st.sampled_from(sorted(fields)), max_size=5)) | (NEEDED & set(fields))
    body = {name: draw(fields[name]) for name in sorted(names)}
    if "completions" in path:
        body["max_tokens"] = draw(st.integers(1, 5))
    if draw(st.booleans()):
        body["model"] = MODEL
    for name in draw(st.lists(st.sampled_from([*sorted(fields), "model", "max_tokens"]), max_size=2)):
        if draw(st.booleans()):
            body[name] = draw(WILD)
    if draw(st.integers(0, 9)) == 0:
        body[draw(st.text(max_size=8))] = draw(WILD)
    return path, body


def check(answer: httpx.Response) -> None:
    """A right answer has its form; any other is an error object whose words are for a person."""
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"] and "Traceback" not in error["message"] and "/src/" not in error["message"]
        assert error["param"] is None or isinstance(error["param"], str)
    elif answer.headers["content-type"].startswith("text/event-stream"):
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        for event in events[:-1]:
            assert "error" not in json.loads(event), event
    else:
        json.loads(answer.content)


class AnyRequests(RuleBasedStateMachine):
    """One server for all examples, as a server has all clients."""

    server: RunningServer
    expected: str

    def post(self, path: str, body: Any = None, **more: Any) -> None:
        content = more.pop("content", None)
        if content is None:
            content = json.dumps(body).encode(errors="surrogatepass")  # NaN and Infinity too: no JSON, but sent
        headers = {"Content-Type": "application/json"} | more
        check(self.server.client.post(path, content=content, headers=headers))

    @rule(request=requests())
    def a_request(self, request: tuple[str, dict[str, Any]]) -> None:
        self.post(*request)

    @rule(request=requests(), seed=st.integers(0, 99))
    def the_same_twice(self, request: tuple[str, dict[str, Any]], seed: int) -> None:
        path, body = request
        body = {name: value for name, value in body.items() if name not in ("stream", "stream_options", "watch")}
        content = json.dumps({**body, "seed": seed} if "completions" in path else body).encode(errors="surrogatepass")
        headers = {"Content-Type": "application/json"}
        found = [self.server.client.post(path, content=content, headers=headers) for _ in range(2)]
        first, second = (
            answer.json()["choices"] if answer.status_code == 200 and "choices" in answer.json() else answer.status_code
            for answer in found
        )
        assert _without_ids(first) == _without_ids(second)

    @rule(path=st.sampled_from(list(ROUTES)), body=WILD)
    def any_json(self, path: str, body: Any) -> None:
        self.post(path, body)

    @rule(path=st.sampled_from(list(ROUTES)), content=st.binary(max_size=40))
    def any_bytes(self, path: str, content: bytes) -> None:
        self.post(path, content=content)

    @rule(request=requests(), cut=st.integers(0, 200))
    def a_body_cut_off(self, request: tuple[str, dict[str, Any]], cut: int) -> None:
        self.post(request[0], content=json.dumps(request[1]).encode(errors="surrogatepass")[:cut])

    @rule(
        method=st.sampled_from(["GET", "PUT", "DELETE", "OPTIONS", "PATCH"]),
        path=st.sampled_from([*ROUTES, "/nothing", "/v1/models/other", "/v1/%00"]),
    )
    def another_method_or_path(self, method: str, path: str) -> None:
        check(self.server.client.request(method, path))

    def teardown(self) -> None:
        assert _greedy(self.server) == self.expected


def _without_ids(choices: Any) -> Any:
    for choice in choices if isinstance(choices, list) else ():
        for call in choice.get("message", {}).get("tool_calls") or []:
            call.pop("id")
    return choices


def _greedy(server: RunningServer) -> str:
    body = {"model": MODEL, "prompt": "abc", "max_tokens": 8, "temperature": 0}
    answer = server.client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


@pytest.fixture(scope="module", params=["plain", "diffusion"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[AnyRequests]]:
    """A model that knows neither tools nor blocks, and one that knows both."""
    directory = tmp_path_factory.mktemp("random") / "toy"
    toy = chat_toy(directory) if request.param == "plain" else diffusion_chat_toy(directory, template=TEMPLATE)
    with RunningServer(toy, slots=2, context=256) as server:
        yield type("Machine", (AnyRequests,), {"server": server, "expected": _greedy(server)})


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def test_any_sequence_of_requests(machine: type[AnyRequests]) -> None:
    few = settings(max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=QUIET)
    run_state_machine_as_test(machine, settings=few)


@pytest.mark.slow
def test_any_long_sequence_of_requests(machine: type[AnyRequests]) -> None:
    many = settings(max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=QUIET)
    run_state_machine_as_test(machine, settings=many)
