"""langchain-openai's ChatOpenAI, OpenAI and OpenAIEmbeddings: a message, a stream, batches, an object, a tool call."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from served import KEY, Served

langchain_openai = pytest.importorskip("langchain_openai", reason="not checked: langchain-openai against the server")


class Weather(BaseModel, extra="forbid"):
    """What the sky does."""

    kind: Literal["sun", "rain", "snow"]
    place: str = Field(max_length=6)


@pytest.fixture
def chat(served: Served) -> Any:
    return langchain_openai.ChatOpenAI(
        model=served.model, base_url=served.url, api_key=KEY, max_tokens=60, temperature=0, max_retries=0
    )


def test_invoke_and_stream_say_the_same(chat: Any) -> None:
    whole = chat.invoke("Hello")
    assert whole.content and whole.usage_metadata["output_tokens"] == 60
    assert whole.response_metadata["finish_reason"] == "length"
    chunks = list(chat.stream("Hello"))
    assert "".join(chunk.content for chunk in chunks) == whole.content and len(chunks) > 2


def test_a_batch_gives_what_each_gives_alone(chat: Any) -> None:
    texts = ["one", "two", "three", "four", "five", "six"]
    assert [m.content for m in chat.batch(texts)] == [chat.invoke(text).content for text in texts]


def test_an_object_by_schema_and_by_tool(chat: Any) -> None:
    for method in ("json_schema", "function_calling"):
        structured = chat.with_structured_output(Weather, method=method)
        found = structured.invoke("How is the sky?", max_tokens=200)
        assert isinstance(found, Weather), method


def test_a_bound_tool_that_must_be_called(chat: Any) -> None:
    bound = chat.bind_tools([Weather], tool_choice="any", parallel_tool_calls=False).bind(max_tokens=200)
    message = bound.invoke("How is the sky?")
    (call,) = message.tool_calls
    assert call["name"] == "Weather" and Weather(**call["args"])
    joined = None
    for chunk in bound.stream("How is the sky?"):
        joined = chunk if joined is None else joined + chunk
    assert joined is not None and joined.tool_calls[0]["args"] == call["args"]


def test_text_and_vectors(served: Served) -> None:
    text = langchain_openai.OpenAI(model=served.model, base_url=served.url, api_key=KEY, max_tokens=8, temperature=0)
    assert text.invoke("Once upon") == text.invoke("Once upon") != ""
    embeddings = langchain_openai.OpenAIEmbeddings(
        model=served.model, base_url=served.url, api_key=KEY, check_embedding_ctx_length=False
    )
    vectors = embeddings.embed_documents(["a", "bb"])
    assert len(vectors) == 2 and vectors[0] == pytest.approx(embeddings.embed_query("a"), abs=1e-6)
