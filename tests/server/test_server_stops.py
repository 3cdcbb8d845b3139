"""Stops, BOS, silence and failures of streams, through the API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running_server import RunningServer, chat_toy
from sse_reading import chunks
from tokenizer_toys import WITH_BOS

from wrinklefree.server.answers import Choice
from wrinklefree.server.errors import ApiError
from wrinklefree.server.sse import KEEP_ALIVE, EventStream, each, unless_gone
from wrinklefree.server.work import Event, Ticket

GREEDY = {"prompt": "stop here", "max_tokens": 40, "temperature": 0}


@pytest.fixture(scope="module")
def whole_text(server: RunningServer) -> str:
    return str(server.client.post("/v1/completions", json=GREEDY).json()["choices"][0]["text"])


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_text_ends_before_its_first_stop_string(server: RunningServer, whole_text: str, data: st.DataObject) -> None:
    """Stop strings are parts of what would come, so they span several tokens (each is one byte)."""
    places = st.tuples(st.integers(0, len(whole_text) - 4), st.integers(1, 4))
    stops = [whole_text[at : at + size] for at, size in data.draw(st.lists(places, min_size=1, max_size=3))]
    first = min(whole_text.find(stop) for stop in stops)
    body = {**GREEDY, "stop": stops if len(stops) > 1 else stops[0]}
    choice = server.client.post("/v1/completions", json=body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (whole_text[:first], "stop")
    streamed = [one["choices"][0] for one in chunks(server.client, "/v1/completions", body)]
    assert "".join(one["text"] for one in streamed) == whole_text[:first]
    assert [one["finish_reason"] for one in streamed] == [None] * (len(streamed) - 1) + ["stop"]


def test_stop_tokens_and_the_limit(server: RunningServer) -> None:
    body = {**GREEDY, "max_tokens": 12, "logprobs": 0, "return_tokens_as_token_ids": True}
    choice = server.client.post("/v1/completions", json=body).json()["choices"][0]
    tokens = [int(name.removeprefix("token_id:")) for name in choice["logprobs"]["tokens"]]
    assert (len(tokens), choice["finish_reason"]) == (12, "length")
    ended = server.client.post("/v1/completions", json={**body, "stop_token_ids": [tokens[5]]}).json()["choices"][0]
    assert len(ended["logprobs"]["tokens"]) == tokens.index(tokens[5]) + 1
    assert ended["finish_reason"] == "stop"


@pytest.mark.parametrize(("template", "post_processor"), [(WITH_BOS, True), (WITH_BOS, False)])
def test_bos_comes_once(tmp_path: Path, template: str, post_processor: bool) -> None:
    """The template writes it, the tokenizer's post-processor would add it: a prompt has it once, texts too."""
    toy = chat_toy(tmp_path / "bos", template=template, post_processor_bos=post_processor)
    with RunningServer(toy, slots=1) as server:
        tokenizer = server.engine.tokenizer
        ids = tokenizer.encode("[user] hi</s>", bos=True)
        assert ids.count(256) == 1
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0}
        chat = server.client.post("/v1/chat/completions", json=body).json()
        assert chat["usage"]["prompt_tokens"] == len(ids)
        body = {"prompt": ids, "max_tokens": 6, "temperature": 0}
        text = server.client.post("/v1/completions", json=body).json()
        assert chat["choices"][0]["message"]["content"] == text["choices"][0]["text"]
        body |= {"prompt": "<s>abc", "max_tokens": 0, "echo": True, "logprobs": 0}
        names = server.client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]["tokens"]
        assert names == ["<s>", "a", "b", "c"]


def test_developer_messages_and_parts_of_text_are_what_templates_know(server: RunningServer) -> None:
    def prompt(messages: list[dict[str, Any]]) -> Any:
        body = {"messages": messages, "max_tokens": 8, "temperature": 0}
        found = server.client.post("/v1/chat/completions", json=body).json()
        return found["usage"]["prompt_tokens"], found["choices"][0]["message"]

    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    plain = [{"role": "system", "content": "x"}, {"role": "user", "content": "a\nb"}]
    assert prompt(plain) == prompt([{"role": "developer", "content": "x"}, {"role": "user", "content": parts}])


# What follows drives one stream by hand: no server, the ASGI messages are looked at.


class Sent(list[dict[str, Any]]):
    async def send(self, message: Any) -> None:
        self.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self)


async def never() -> Any:
    await asyncio.Event().wait()


def run_stream(events: Iterator[Any] | list[Any], receive: Any = never, keep_alive: float = 60.0) -> tuple[Sent, int]:
    """Run a stream whose ticket is given ``events`` (numbers are pauses); return what was sent, and how often it was
    cancelled."""
    cancelled = []

    async def run() -> Sent:
        ticket = Ticket(1, 0, lambda: cancelled.append(1))
        choice = Choice(0, ticket, 0.0)

        async def write(out: Any) -> None:
            async for found in choice.ticket:
                await out(b"data: %d\n\n" % len(found.passes))

        async def feed() -> None:
            for one in events:
                if isinstance(one, float):
                    await asyncio.sleep(one)
                else:
                    ticket.give(one)

        sent, feeding = Sent(), asyncio.ensure_future(feed())
        try:
            await EventStream([ticket], write, keep_alive)({"type": "http"}, receive, sent.send)
        finally:
            feeding.cancel()
        return sent

    return asyncio.run(run()), len(cancelled)


def test_a_silent_stream_sends_comments() -> None:
    sent, _ = run_stream([0.5, Event(), None], keep_alive=0.05)
    assert sent[0]["type"] == "http.response.start"
    assert sent.body.startswith(KEEP_ALIVE) and sent.body.endswith(b"data: 0\n\ndata: [DONE]\n\n")


def test_what_fails_before_the_first_event_has_a_status_of_its_own() -> None:
    with pytest.raises(ApiError, match="too late"):
        run_stream([ApiError(429, "too late")])


def test_what_fails_later_is_the_last_event() -> None:
    sent, cancelled = run_stream([Event(), 0.01, ApiError(504, "too slow", "server_error")])
    first, last, end = sent.body.split(b"\n\n")
    assert (first, end, cancelled) == (b"data: 0", b"", 1)
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "too slow"
    assert sent[-1]["more_body"] is False


def test_our_own_failures_in_a_stream_tell_nothing() -> None:
    sent, _ = run_stream([Event(), 0.01, RuntimeError("/secret/path")])
    assert b'"code":"internal_error"' in sent.body and b"secret" not in sent.body


def test_a_client_that_goes_cancels_the_answer() -> None:
    async def gone() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.disconnect"}

    sent, cancelled = run_stream([Event()], receive=gone)
    assert (sent.body, cancelled) == (b"data: 0\n\n", 1)


def test_one_of_several_answers_failing_ends_the_request() -> None:
    """An answer of which a part is missing is none: the failure is the request's, the other choices are cancelled."""

    async def run() -> list[int]:
        cancelled: list[int] = []
        tickets = [Ticket(1, 0, lambda number=number: cancelled.append(number)) for number in range(3)]  # type: ignore[misc]

        async def take(choice: Choice, event: Event) -> None:
            tickets[2].give(ApiError(500, "the third"))

        tickets[0].give(Event())
        choices = [Choice(index, ticket, 0.0) for index, ticket in enumerate(tickets)]
        with pytest.raises(ApiError, match="the third"):
            await unless_gone(never, tickets, each(choices, take))
        return cancelled

    assert asyncio.run(run()) == [0, 1, 2]
