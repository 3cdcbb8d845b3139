"""From nested mappings, as YAML gives them, to frozen dataclasses: unknown keys and wrong types stop at this door."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from wrinklefree.errors import InputError, unknown_name

T = TypeVar("T")


def build(kind: type[T], raw: Any, place: str, ready: Mapping[str, Any] | None = None) -> T:
    """Return a ``kind`` (a dataclass) made of ``raw``; what is missing takes its default. ``ready`` values are typed.

    Raises: InputError naming ``place`` and the key, with the nearest match for an unknown one.
    """
    if not isinstance(raw, Mapping):
        raise _wrong(place, raw, "keys with values")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            raise unknown_name(f"key in {place}" if place else "recipe key", str(key), fields)
    values = {key: convert(hints[key], value, f"{place}.{key}".strip(".")) for key, value in raw.items()}
    values |= ready or {}
    needed = (dataclasses.MISSING, dataclasses.MISSING)
    for name, f in fields.items():
        if name not in values and (f.default, f.default_factory) == needed:
            raise InputError(f"{f'{place}.{name}'.strip('.')}: is missing and has no default; set it")
    return kind(**values)


def convert(kind: Any, value: Any, place: str) -> Any:
    """Return ``value`` as ``kind``: a scalar, Literal, optional, tuple, mapping or dataclass."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, value, place)
    if origin is Literal:
        if value not in arguments:
            raise unknown_name(place, str(value), map(str, arguments))
        return value
    if origin is tuple:
        return _tuple(arguments, value, place)
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise _wrong(place, value, "keys with values")
        return {str(key): convert(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, value, place)
    return _scalar(kind, value, place)


def schema_keys(kind: type, place: str = "") -> dict[str, Any]:
    """Return every dotted key of a dataclass and the type behind it; a mapping's free names appear as ``*``."""
    keys: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        hint, name = typing.get_type_hints(kind)[f.name], f"{place}.{f.name}".strip(".")
        keys[name] = hint
        inner = hint
        if typing.get_origin(hint) in (dict, Mapping) and typing.get_args(hint):
            inner, name = typing.get_args(hint)[1], f"{name}.*"
            keys[name] = inner
        # A list is overridden as a whole, so its entries have no keys of their own.
        parts = typing.get_args(inner) if typing.get_origin(inner) in (typing.Union, types.UnionType) else (inner,)
        for part in parts:
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                keys |= schema_keys(part, name)
    return keys


def _union(choices: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and types.NoneType in choices:
        return None
    problem: InputError | None = None
    for choice in (c for c in choices if c is not types.NoneType):
        try:
            return convert(choice, value, place)
        except InputError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _tuple(kinds: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong(place, value, "a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise InputError(f"{place}: found {len(value)} entries, needed are {len(kinds)}")
    return tuple(convert(k, item, f"{place}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))


def _scalar(kind: Any, value: Any, place: str) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e9 is how people write a number of tokens
    if type(value) is not kind:
        raise _wrong(place, value, getattr(kind, "__name__", str(kind)))
    return value


def _wrong(place: str, value: Any, needed: str) -> InputError:
    return InputError(f"{place or 'recipe'}: found {value!r} ({type(value).__name__}), needed is {needed}")
