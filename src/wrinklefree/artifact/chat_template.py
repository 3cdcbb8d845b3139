"""Rendering a model's own chat template. The template comes out of a model file: it is data, not a program.

It runs in a sandbox with a budget (`template_sandbox`) under limits of its own: the template's size and the length of
the output.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import SecurityError

from wrinklefree.artifact.template_sandbox import Budget, Sandbox, budget, limited
from wrinklefree.errors import FormatError, InputError

MAX_TEMPLATE_CHARACTERS = 1 << 17  # the longest in use have a fifth of it; compiling one takes most of a second
MAX_OUTPUT_CHARACTERS = 16 << 20


class ChatTemplate:
    """A compiled chat template. Raises FormatError when its source is too long or not a template."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise FormatError(f"chat template: found {len(source)} characters, allowed are {MAX_TEMPLATE_CHARACTERS}")
        self.source = source
        token = budget.set(Budget())  # constants are computed now
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise FormatError(f"chat template: line {error.lineno}: {error.message}") from error
        except (RecursionError, MemoryError, OverflowError, ValueError, SyntaxError) as error:
            raise FormatError(f"chat template: cannot be compiled ({type(error).__name__})") from error
        finally:
            budget.reset(token)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, object],
    ) -> str:
        """Return the prompt text of a conversation.

        ``variables`` are the tokenizer's special tokens (``bos_token``, ``eos_token``, ...) and any extras.
        Raises: InputError when the template refuses the messages; FormatError when the template itself fails
        or exceeds its budget.
        """
        token = budget.set(Budget(len(repr(messages)) + len(repr(tools))))
        pieces: list[str] = []
        length = 0
        try:
            stream = self._template.generate(
                {
                    **variables,
                    "messages": [dict(message) for message in messages],
                    "tools": [dict(tool) for tool in tools] if tools else None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
            for piece in stream:
                length += len(piece)
                if length > MAX_OUTPUT_CHARACTERS:
                    raise FormatError(f"chat template: wrote more than {MAX_OUTPUT_CHARACTERS} characters")
                pieces.append(piece)
        except InputError:
            raise
        except (TemplateError, SecurityError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise FormatError(f"chat template: failed on these messages: {error}") from error
        except (RecursionError, MemoryError, AttributeError) as error:
            raise FormatError(f"chat template: failed on these messages ({type(error).__name__})") from error
        finally:
            budget.reset(token)
        return "".join(pieces)


@cache
def _environment() -> Sandbox:
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = limited("tojson", _tojson)
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which would change a prompt.
    allowed = {key: options[key] for key in ("separators", "sort_keys") if key in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, 16) if indent else indent, **allowed)


def _raise_exception(message: str) -> None:
    raise InputError(f"the chat template refuses these messages: {message}")


def _strftime_now(form: str) -> str:
    if len(form) > 1000:
        raise SecurityError("a format of a date of more than 1000 characters is not allowed")
    return datetime.datetime.now().strftime(form)


class _Generation(Extension):
    """Accept ``{% generation %}`` ... ``{% endgeneration %}`` (a training mask); keep the body as is."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance-compatible set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
