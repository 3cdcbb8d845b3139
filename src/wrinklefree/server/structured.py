"""From a request's fields to the rule that its answers keep to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from wrinklefree.server.errors import ApiError
from wrinklefree.server.grammar import Rule
from wrinklefree.server.regex_size import expanded_size, patterns_of
from wrinklefree.server.schemas.structured import ResponseFormat, Structured

MAX_SCHEMA_CHARACTERS = 1 << 16
MAX_SCHEMA_DEPTH = 32  # objects and lists in each other
MAX_ALTERNATIVES = 256  # of anyOf and oneOf in a schema, together
MAX_MULTIPLE = 10_000  # of multipleOf, without its decimal point: its automaton has as many states
MAX_PATTERN_SIZE = 5_000  # of all regular expressions of a request, see regex_size.py


def read_rule(body: Structured) -> Rule | None:
    """Return the rule of a request, None where any text is fine. Raises: ApiError for more than one, or a bad one."""
    rules = [rule for rule in _rules(body) if rule is not None]
    if len(rules) > 1:
        names = " and ".join(rule.field for rule in rules)
        raise ApiError(400, f"{rules[1].field}: found {names}, an answer can keep to one of them", param=rules[1].field)
    return rules[0] if rules else None


def schema_rule(field: str, schema: dict[str, Any]) -> Rule:
    """Return the rule of a JSON schema. Raises: ApiError for one that is too long or too deeply nested."""
    check_schema(field, schema)
    return Rule(field, "json_schema", json.dumps(schema))


def check_schema(field: str, schema: dict[str, Any]) -> None:
    """Refuse a schema that is too deeply nested or too long. Raises: ApiError."""
    if _deeper_than(schema, MAX_SCHEMA_DEPTH):
        message = f"{field}: found objects and lists more than {MAX_SCHEMA_DEPTH} deep; use $defs and $ref"
        raise ApiError(400, message, param=field)
    size = len(json.dumps(schema))
    if size > MAX_SCHEMA_CHARACTERS:
        message = f"{field}: found {size} characters of JSON, at most {MAX_SCHEMA_CHARACTERS} are allowed"
        raise ApiError(400, message, param=field)
    alternatives = _alternatives(schema)
    if alternatives > MAX_ALTERNATIVES:
        message = f"{field}: found {alternatives} parts of anyOf and oneOf, at most {MAX_ALTERNATIVES} are allowed"
        raise ApiError(400, message, param=field)
    _check_multiples(field, schema)
    _check_patterns(field, patterns_of(schema))


def _check_multiples(field: str, schema: Any) -> None:
    if isinstance(schema, dict):
        found = schema.get("multipleOf")
        if _states(found) > MAX_MULTIPLE:
            message = f"{field}: multipleOf may be {MAX_MULTIPLE} at most, without its decimal point"
            raise ApiError(400, message, param=field, code="grammar_too_complex")
    if isinstance(schema, dict | list):
        for inner in schema.values() if isinstance(schema, dict) else schema:
            _check_multiples(field, inner)


def _states(multiple: Any) -> int:
    """Return the digits of a number without its decimal point; 0 for what is no number."""
    if isinstance(multiple, int):
        return abs(multiple)
    if not isinstance(multiple, float) or not math.isfinite(multiple):
        return 0
    return int("".join(map(str, Decimal(repr(multiple)).as_tuple().digits)))


def _check_patterns(field: str, patterns: list[str]) -> None:
    try:
        size = sum(map(expanded_size, patterns))
    except ValueError as error:
        raise ApiError(400, f"{field}: {error} in a regular expression", param=field) from error
    if size > MAX_PATTERN_SIZE:
        message = f"{field}: regular expressions may have {MAX_PATTERN_SIZE} characters with repetitions written out"
        raise ApiError(400, f"{message}, found {size}", param=field, code="grammar_too_complex")


def _rules(body: Structured) -> Iterator[Rule | None]:
    if body.response_format is not None:
        yield _format_rule(body.response_format)
    if body.guided_regex is not None:
        _check_patterns("guided_regex", [body.guided_regex])
        yield Rule("guided_regex", "regex", body.guided_regex)
    if body.guided_choice is not None:
        yield Rule("guided_choice", "regex", "|".join(re.escape(choice) for choice in body.guided_choice))


def _format_rule(wanted: ResponseFormat) -> Rule | None:
    named = wanted.json_schema
    if (named is None) == (wanted.type == "json_schema"):
        found = "missing" if named is None else f"given for type {wanted.type}"
        message = f"response_format.json_schema: {found}; it belongs to type json_schema, which needs it"
        raise ApiError(400, message, param="response_format.json_schema")
    if wanted.schema_ is not None and wanted.type != "json_object":
        message = f"response_format.schema: given for type {wanted.type}; it belongs to type json_object"
        raise ApiError(400, message, param="response_format.schema")
    if named is not None:
        return schema_rule("response_format.json_schema.schema", named.schema_)
    if wanted.type == "json_object":
        return schema_rule("response_format.schema", wanted.schema_ or {"type": "object"})
    return None


def _alternatives(schema: Any) -> int:
    if not isinstance(schema, dict | list):
        return 0
    inner = schema.values() if isinstance(schema, dict) else schema
    own = [schema.get(name) for name in ("anyOf", "oneOf")] if isinstance(schema, dict) else []
    return sum(len(one) for one in own if isinstance(one, list)) + sum(map(_alternatives, inner))


def _deeper_than(value: Any, most: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_deeper_than(one, most - 1) for one in inner)
