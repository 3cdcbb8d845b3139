"""JSON from files of others: one strict reading, the same as that of the C++ loader (native/runtime/json).

Python's own reader takes more than JSON and leaves some of it to chance. Here a text is refused when it has a key
twice (two programs would see two values), ``NaN`` or ``Infinity`` or a number beyond float64 (neither is JSON, and it
cannot be written back), half a surrogate pair (a string that cannot be encoded, so that printing it raises), an
integer of more than 4,300 digits, or more than 64 levels of nesting (then nothing that walks the value can exhaust
the stack). A NUL in a string is an ordinary character.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from wrinklefree.errors import FormatError

MAX_DEPTH = 64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _Refused(ValueError):
    """What the hooks below found; the message is complete but for the place."""


def parse_json_value(text: bytes | str, place: str) -> Any:
    """Return the value of a JSON text.

    Raises: FormatError naming ``place`` for anything that is not one strict JSON value.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{place}: found bytes that are not UTF-8 at offset {error.start}") from error
    except UnicodeEncodeError as error:
        raise FormatError(f"{place}: not usable JSON: a string holds half a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise FormatError(f"{place}: not valid JSON, line {error.lineno}: {error.msg}") from error
    except _Refused as error:
        raise FormatError(f"{place}: not usable JSON: {error}") from error
    except RecursionError as error:
        raise FormatError(f"{place}: not usable JSON: more than {MAX_DEPTH} levels of nesting") from error
    except ValueError as error:
        raise FormatError(f"{place}: not usable JSON: an integer of more than 4300 digits") from error
    _check_depth(value, place)
    return value


def parse_json(text: bytes | str, place: str) -> dict[str, Any]:
    """Return the object of a JSON text. Raises: FormatError as `parse_json_value`, and for a value of another type."""
    value = parse_json_value(text, place)
    if not isinstance(value, dict):
        raise FormatError(f"{place}: found a JSON {type(value).__name__}, an object is needed")
    return value


def _check_depth(value: Any, place: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise FormatError(f"{place}: not usable JSON: more than {MAX_DEPTH} levels of nesting")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"the key {twice[:80]!r} appears twice")
    return entries


def _no_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused(f"{digits[:40]} is more than a float64 holds")
    return value
