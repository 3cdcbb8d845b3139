"""Fields that say what an answer must look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_RULE_CHARACTERS = 8192
MAX_CHOICES = 1024
Choice = Annotated[str, Field(min_length=1, max_length=1024)]


class JsonSchemaFormat(BaseModel):
    """A JSON schema with a name. It is always kept to, whatever ``strict`` says."""

    model_config = ConfigDict(strict=True, extra="forbid", populate_by_name=True)
    name: str | None = Field(None, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """``text``: anything; ``json_object``: a JSON object, of ``schema`` where given; ``json_schema``: as it says."""

    model_config = ConfigDict(strict=True, extra="forbid", populate_by_name=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="of json_object only")


class Structured(BaseModel):
    """Rules for the text of an answer; at most one of them may be given."""

    response_format: ResponseFormat | None = None
    guided_regex: str | None = Field(
        None, min_length=1, max_length=MAX_RULE_CHARACTERS, description="a regular expression for the whole answer"
    )
    guided_choice: list[Choice] | None = Field(
        None, min_length=1, max_length=MAX_CHOICES, description="the answer is one of these"
    )
