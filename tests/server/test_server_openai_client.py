"""OpenAI's own Python client, unchanged, against a real server: what it returns and what it raises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field
from running_server import MODEL, RunningServer

ASK = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"


def test_a_stream_gives_the_text_and_usage_of_the_whole_answer(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": ASK, "max_tokens": 20, "temperature": 0, "extra_body": {"ignore_eos": True}}
    whole = client.chat.completions.create(**asked)
    assert whole.usage is not None and whole.usage.completion_tokens == 20
    assert whole.choices[0].finish_reason == "length"
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    usage = chunks[-1].usage
    assert chunks[-1].choices == [] and usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert len({chunk.id for chunk in chunks}) == 1


def test_three_choices_are_three_seeds(client: openai.OpenAI) -> None:
    def texts(n: int, seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=ASK, max_tokens=12, temperature=1.5, n=n, seed=seed
        )
        assert [choice.index for choice in answer.choices] == list(range(n))
        return [choice.message.content for choice in answer.choices]

    three = texts(3, 5)
    assert len(set(three)) == 3
    assert three == texts(3, 5) == [texts(1, seed)[0] for seed in (5, 6, 7)]


def test_log_probabilities_of_chat_and_completions_are_the_same(client: openai.OpenAI) -> None:
    plain = client.completions.create(model=MODEL, prompt="abc", max_tokens=6, temperature=0, logprobs=3)
    found = plain.choices[0].logprobs
    assert found is not None and found.tokens is not None and found.token_logprobs is not None
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs or []) == 6
    chat = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    assert chat.choices[0].logprobs is not None
    entries = chat.choices[0].logprobs.content
    assert entries is not None and len(entries) == 6
    for entry in entries:
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs) and len(entry.top_logprobs) == 3
    joined = b"".join(bytes(entry.bytes or []) for entry in entries)
    assert joined.decode(errors="replace") == chat.choices[0].message.content


def test_a_stop_list_ends_the_text_before_the_string(client: openai.OpenAI) -> None:
    full = client.completions.create(model=MODEL, prompt="abc", max_tokens=40, temperature=0).choices[0].text
    stop = full[10:12]
    cut = client.completions.create(
        model=MODEL, prompt="abc", max_tokens=40, temperature=0, stop=["not in the text", stop]
    )
    assert cut.choices[0].text == full[: full.index(stop)] and cut.choices[0].finish_reason == "stop"


class Weather(BaseModel):
    kind: Literal["sun", "rain", "snow"]
    wet: bool
    place: str = Field(max_length=8)


def test_parse_returns_an_object_of_the_class(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=ASK, max_tokens=200, response_format=Weather, seed=1)
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Weather) and parsed == Weather.model_validate_json(
        answer.choices[0].message.content or ""
    )


def test_embeddings_have_one_vector_a_text(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model=MODEL, input=["one", "another text"])  # the client asks for base64
    plain = client.embeddings.create(model=MODEL, input="one", encoding_format="float")
    assert [entry.index for entry in found.data] == [0, 1]
    assert found.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)


def test_what_is_wrong_comes_as_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=ASK)
    assert missing.value.code == "model_not_found" and "gpt-5" in missing.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 5000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as range_error:
        client.chat.completions.create(model=MODEL, messages=ASK, temperature=-1)
    assert range_error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model=MODEL, messages=ASK, extra_body={"temprature": 1})
    assert "temperature" in unknown.value.message


def test_sixteen_streams_at_a_time_give_what_each_gives_alone(server: RunningServer) -> None:
    """More streams than slots; and the client that leaves in the middle disturbs nobody."""

    async def ask(client: openai.AsyncOpenAI, i: int, stop_after: int | None = None) -> str:
        text = ""
        stream = await client.completions.create(
            model=MODEL, prompt=f"text number {i}", max_tokens=10 + i, temperature=1.0, seed=i, stream=True
        )
        async with stream:
            async for count, chunk in _numbered(stream):
                text += chunk.choices[0].text
                if count == stop_after:
                    break
        return text

    async def everything() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            alone = [await ask(client, i) for i in range(16)]
            assert len(set(alone)) == 16
            leavers = [ask(client, i, stop_after=2) for i in range(4)]
            crowd = await asyncio.gather(*(ask(client, i) for i in range(16)), *leavers)
            assert list(crowd[:16]) == alone

    asyncio.run(everything())


async def _numbered(stream: Any) -> AsyncIterator[tuple[int, Any]]:
    count = 0
    async for chunk in stream:
        count += 1
        yield count, chunk


def test_a_wrong_key_is_an_authentication_error(toy: Path) -> None:
    with RunningServer(toy, api_keys=("right-key",)) as guarded:
        stranger = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0)
        with stranger, pytest.raises(openai.AuthenticationError) as refused:
            stranger.models.list()
        assert refused.value.code == "invalid_api_key" and "right-key" not in json.dumps(refused.value.body)
        with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="right-key", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == [MODEL]
