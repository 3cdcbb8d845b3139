"""Rendering a model's own chat template. The template comes out of a model file: it is data, not a program.

It runs in jinja2's immutable sandbox (no attribute of Python's internals, no change of the caller's lists)
with a budget for what a sandbox alone does not bound: the template's size, the items its loops walk over, the
length of strings made by multiplication, and the length of the output.
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from wrinklefree.errors import FormatError, InputError

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_LOOP_ITEMS = 1_000_000
MAX_OUTPUT_CHARACTERS = 16 << 20
_MAX_REPEATED = 1 << 20

_loop_items_left: ContextVar[int] = ContextVar("_loop_items_left")


class ChatTemplate:
    """A compiled chat template. Raises FormatError when its source is too long or not a template."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise FormatError(f"chat template: found {len(source)} characters, allowed are {MAX_TEMPLATE_CHARACTERS}")
        self.source = source
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise FormatError(f"chat template: line {error.lineno}: {error.message}") from error
        except (RecursionError, MemoryError, OverflowError, ValueError, SyntaxError) as error:
            raise FormatError(f"chat template: cannot be compiled ({type(error).__name__})") from error

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
        token = _loop_items_left.set(MAX_LOOP_ITEMS)
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
            _loop_items_left.reset(token)
        return "".join(pieces)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters["tojson"] = _tojson
        self.filters["_bounded"] = _bounded
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        # Each loop's iterable passes through `_bounded`, which charges its items to this rendering's budget.
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_bounded", [], [], None, None, lineno=loop.lineno)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("the operator % on text is not allowed, its width is unbounded")
        if operator == "*" and _repeats_too_much(left, right):
            raise SecurityError(f"a repetition of more than {_MAX_REPEATED} items is not allowed")
        if operator == "**" and (abs(left) > 1_000_000 or abs(right) > 32):
            raise SecurityError("a power this large is not allowed")
        return super().call_binop(context, operator, left, right)


def _repeats_too_much(left: Any, right: Any) -> bool:
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(count, int):
            return len(sequence) * count > _MAX_REPEATED
    return False


def _bounded(items: Iterable[Any]) -> list[Any]:
    left = _loop_items_left.get(MAX_LOOP_ITEMS)
    taken = list(itertools.islice(items, left + 1))
    if len(taken) > left:
        raise SecurityError(f"its loops walk over more than {MAX_LOOP_ITEMS} items")
    _loop_items_left.set(left - len(taken))
    return taken


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which would change a prompt.
    allowed = {key: options[key] for key in ("separators", "sort_keys") if key in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, 16) if indent else indent, **allowed)


def _raise_exception(message: str) -> None:
    raise InputError(f"the chat template refuses these messages: {message}")


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


class _Generation(Extension):
    """Accept ``{% generation %}`` ... ``{% endgeneration %}`` (a training mask); keep the body as is."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance-compatible set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
