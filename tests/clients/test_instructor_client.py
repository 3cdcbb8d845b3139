"""instructor in its modes: a pydantic object by tools and by json_schema, and a list of objects from a stream."""

from __future__ import annotations

from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field
from served import KEY, Served

instructor = pytest.importorskip("instructor", reason="not checked: instructor against the server")


class Person(BaseModel, extra="forbid"):  # else a model of random weights adds properties for ever
    name: str = Field(max_length=6)
    size: Literal["small", "tall"]


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "JSON"])
def test_an_object_of_the_class(mode: str, served: Served) -> None:
    plain = openai.OpenAI(base_url=served.url, api_key=KEY)
    client = instructor.from_openai(plain, mode=getattr(instructor.Mode, mode))
    ask = [{"role": "user", "content": "Who is it?"}]
    if mode == "JSON":  # any JSON object: random weights would not hit the class
        raw = plain.chat.completions.create(
            model=served.model, messages=ask, max_tokens=300, response_format={"type": "json_object"}, temperature=0
        )
        assert raw.choices[0].message.content.startswith("{")
        return
    found = client.chat.completions.create(
        model=served.model, messages=ask, response_model=Person, max_tokens=200, max_retries=0, temperature=0
    )
    assert isinstance(found, Person)
