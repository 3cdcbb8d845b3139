"""Running a template that somebody else wrote: jinja2's immutable sandbox with a budget of steps, memory and time.

The sandbox keeps a template from Python's internals and from changing what it is given. It does not keep it from
doubling a text forty times, from a macro that calls itself twice, or from asking for a column of a billion spaces. So
every round of a loop, every call and every filter is a step that is paid for, everything that makes a text or a list
longer is counted before it is made, and at every few steps the clock is read.
"""

from __future__ import annotations

import functools
import itertools
import re
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000
MAX_SECONDS = 2.0
# Characters of all texts that are made; plus a multiple of what is given, because some templates build the prompt by
# making a text longer with each message.
MAX_MADE = 16 << 20
MADE_PER_GIVEN = 1024
_COST_OF_AN_ITEM = 16
_MAX_REPEATED = 1 << 20
_MAX_WIDTH = 1 << 16
_MAX_BITS = 4096
_MAX_DEPTH = 64
_WIDTH_FILTERS = frozenset(("batch", "center", "filesizeformat", "indent", "round", "slice", "truncate", "wordwrap"))
_WIDTH_METHODS = frozenset(("center", "expandtabs", "ljust", "rjust", "zfill"))
_LONG_FIELD = re.compile(r"\d{5}|\{[^{}]*\{")


class Budget:
    """What one rendering may still use. ``given``: characters of the messages, which are the caller's own."""

    def __init__(self, given: int = 0) -> None:
        self.steps = MAX_STEPS
        self.made = MAX_MADE + MADE_PER_GIVEN * given
        self.end = time.thread_time() + MAX_SECONDS

    def pay(self, steps: int = 1) -> None:
        """Take steps. Raises: SecurityError when none are left, or no time."""
        self.steps -= steps
        if self.steps < 0:
            raise SecurityError(f"its loops and calls walk over more than {MAX_STEPS} items")
        if time.thread_time() > self.end:
            raise SecurityError(f"it takes more than {MAX_SECONDS:g} seconds")

    def make(self, size: int) -> None:
        """Take the size of a text that is about to be made. Raises: SecurityError when it is too much."""
        self.made -= size
        if self.made < 0:
            raise SecurityError("the texts and lists that it makes are too long")

    def made_of(self, value: Any) -> Any:
        """Return a value that was made, after taking its size."""
        if isinstance(value, str | bytes):
            self.make(len(value))
        elif isinstance(value, list | tuple | dict):
            self.make(_COST_OF_AN_ITEM * len(value))
        return value


budget: ContextVar[Budget] = ContextVar("budget")


def _budget() -> Budget:
    found = budget.get(None)
    if found is None:  # while a template is compiled: constants are computed then
        found = Budget()
        budget.set(found)
    return found


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of templates from model files. Set `budget` around compiling and rendering."""

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.globals["lipsum"]
        self.filters.update({name: limited(name, found) for name, found in self.filters.items()})
        self.filters |= {"replace": _replace, "join": _join, "indent": _indent(self.filters["indent"])}
        self.filters |= {"format": _no_format, "_bounded": _bounded, "_pay": _pay, "_joined": _joined}
        self.filters |= {"_made": _made, "_kept": _kept}

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join the output of a macro, a block or a ``set`` block."""
        parts = list(pieces)
        _budget().make(sum(map(len, parts)))
        return "".join(parts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function, a method or a macro."""
        spent = _budget()
        spent.pay()
        _check_call(spent, __obj, args)
        return spent.made_of(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute a binary operator whose result could be far longer than its operands."""
        if operator == "%" and isinstance(left, str | bytes):
            raise SecurityError("the operator % on text is not allowed, its width is unbounded")
        if operator == "*" and _repeats_too_much(left, right):
            raise SecurityError(f"a repetition of more than {_MAX_REPEATED} items is not allowed")
        if operator in ("*", "**") and _too_large(operator, left, right):
            raise SecurityError("a number this large is not allowed")
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            spent = _budget()
            spent.made_of(left)
            spent.made_of(right)
        result = super().call_binop(context, operator, left, right)
        return _budget().made_of(result) if operator == "*" else result


class _Instrument(NodeTransformer):
    """Puts a payment before each body that can run more than once, and around what makes texts."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_bounded")
        return _paid(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return _paid(self.generic_visit(node))

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return _paid(self.generic_visit(node))

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return _paid(self.generic_visit(node))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_made") if isinstance(node.arg, nodes.Slice) else node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        self.generic_visit(node)
        # What a namespace keeps is all that one round of a loop leaves to the next.
        if any(True for _ in node.target.find_all(nodes.NSRef)) or isinstance(node.target, nodes.NSRef):
            node.node = _filter(node.node, "_kept")
        return node


def _filter(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _paid(node: Any) -> nodes.Node:
    paid: nodes.Node = node
    node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(None, lineno=node.lineno), "_pay"), lineno=node.lineno))
    return paid


# With a context a filter is not computed when the template is compiled.
@pass_context
def _pay(context: Context, value: None) -> None:
    _budget().pay()


@pass_context
def _bounded(context: Context, items: Iterable[Any]) -> list[Any]:
    spent = _budget()
    taken = list(itertools.islice(items, spent.steps + 1))
    spent.pay(len(taken))
    return taken


@pass_context
def _joined(context: Context, parts: list[Any]) -> str:
    return Sandbox.concat(map(str, parts))


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _budget().made_of(value)


@pass_context
def _kept(context: Context, value: Any) -> Any:
    """Refuse what is nested so deep that comparing, hashing or printing it could exhaust the stack."""
    level = [value] if isinstance(value, list | tuple | dict) else []
    for _ in range(_MAX_DEPTH):
        if not level:
            return value
        inner = {
            id(child): child
            for node in level
            for child in (itertools.chain(node, node.values()) if isinstance(node, dict) else node)
            if isinstance(child, list | tuple | dict)
        }
        _budget().pay(len(inner))
        level = list(inner.values())
    raise SecurityError(f"a value of more than {_MAX_DEPTH} levels is not allowed")


def limited(name: str, found: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter or function that pays for its call and for what it makes."""

    @functools.wraps(found)
    def run(*args: Any, **kwargs: Any) -> Any:
        spent = _budget()
        spent.pay()
        if name in _WIDTH_FILTERS and any(_wide(value) for value in (*args, *kwargs.values())):
            raise SecurityError(f"{name}: a width of more than {_MAX_WIDTH} is not allowed")
        return spent.made_of(found(*args, **kwargs))

    return run


def _wide(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > _MAX_WIDTH


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, before, after = str(value), str(old), str(new)
    spent = _budget()
    spent.pay()
    spent.make(len(text) + text.count(before) * len(after))
    return text.replace(before, after, -1 if count is None else count)


@pass_context
def _join(context: Context, value: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
    items: Iterable[Any] = _bounded(context, value)
    if attribute is not None:
        items = map(make_attrgetter(context.environment, attribute), items)
    parts, between = [str(item) for item in items], str(d)
    _budget().make(sum(map(len, parts)) + len(between) * len(parts))
    return between.join(parts)


def _indent(found: Callable[..., Any]) -> Callable[..., Any]:
    def run(value: Any, width: int | str = 4, *args: Any, **kwargs: Any) -> Any:
        _budget().make((str(value).count("\n") + 1) * (len(width) if isinstance(width, str) else width))
        return found(value, width, *args, **kwargs)

    return run


def _no_format(*args: Any) -> str:
    raise SecurityError("the filter format is not allowed, its width is unbounded")


def _check_call(spent: Budget, called: Any, args: tuple[Any, ...]) -> None:
    """Refuse or count the methods of texts and numbers whose result can be far longer than their arguments."""
    method = getattr(called, "__wrapped__", called)  # the sandbox wraps str.format
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(owner, str | bytes | int):
        return
    if name in ("to_bytes", "translate", "format_map"):
        raise SecurityError(f"the method {name} is not allowed, the length of its result is unbounded")
    if name in _WIDTH_METHODS and args and _wide(args[0]):
        raise SecurityError(f"{name}: a width of more than {_MAX_WIDTH} is not allowed")
    if name == "expandtabs" and isinstance(owner, str | bytes):
        tab: Any = "\t" if isinstance(owner, str) else b"\t"
        spent.make(owner.count(tab) * (args[0] if args and isinstance(args[0], int) else 8))
    if name == "format":
        _check_format(spent, str(owner), args)
    if name == "join" and args and isinstance(owner, str | bytes):
        items = args[0] if isinstance(args[0], list | tuple | dict | str | bytes) else ()
        spent.make(sum(len(item) for item in items if isinstance(item, str | bytes)) + len(owner) * len(items))
    if name == "replace" and len(args) > 1 and isinstance(owner, str) and isinstance(args[0], str):
        spent.make(owner.count(args[0]) * len(str(args[1])))


def _check_format(spent: Budget, text: str, args: tuple[Any, ...]) -> None:
    if _LONG_FIELD.search(text):
        raise SecurityError("format: a width of more than 9999, or in a field of its own, is not allowed")
    longest = max((len(arg) for arg in args if isinstance(arg, str)), default=0)
    spent.make(text.count("{") * longest + sum(int(width) for width in re.findall(r"\d+", text)))


def _repeats_too_much(left: Any, right: Any) -> bool:
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, str | bytes | list | tuple) and isinstance(count, int):
            return len(sequence) * count > _MAX_REPEATED
    return False


def _too_large(operator: str, left: Any, right: Any) -> bool:
    if not isinstance(left, int) or not isinstance(right, int):
        return False
    bits = left.bit_length()
    return (bits * abs(right) if operator == "**" else bits + right.bit_length()) > _MAX_BITS
