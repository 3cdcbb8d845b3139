"""Fields of a chat request about functions that the model may call."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TOOLS = 128
_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class Function(BaseModel):
    """A function. ``parameters``: a JSON schema of an object; absent: no parameters."""

    model_config = ConfigDict(strict=True, extra="forbid")
    name: str = Field(pattern=_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="true: calls of it keep to the schema, in mode ar")


class Tool(BaseModel):
    """A tool; functions are the only kind."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["function"]
    function: Function


class FunctionName(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(strict=True, extra="forbid")
    name: str = Field(pattern=_NAME)


class ToolName(BaseModel):
    """The one tool that must be called."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["function"]
    function: FunctionName


class WithTools(BaseModel):
    """Tools, and whether they may or must be called."""

    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolName | None = Field(
        None, description="default auto; required and a name are forced, in mode ar"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call, in mode ar")
