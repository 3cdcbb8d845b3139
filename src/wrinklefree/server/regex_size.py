"""How large a regular expression becomes when its counted repetitions are written out.

A mask takes time in proportion to it, which no limit of the grammar library bounds: ``(a{1000}){1000}`` costs seconds a
token.
"""

from __future__ import annotations

import re
from typing import Any

_COUNT = re.compile(r"\{\s*(\d*)\s*(,?)\s*(\d*)\s*\}")
_VERBOSE = re.compile(r"\(\?[a-zA-Z-]*x")
_DIGITS = 6  # a longer count is too large whatever it is


def expanded_size(pattern: str) -> int:
    """Return the number of characters and classes of ``pattern`` with each ``{m,n}`` written out n times.

    An upper bound where a pattern is odd. Raises: ValueError for the flag x, under which white space and comments may
    stand before a count.
    """
    if _VERBOSE.search(pattern):
        raise ValueError("the flag x is not allowed")
    totals, last, at = [0], 0, 0  # of each open group; of the part that a count would repeat
    while at < len(pattern):
        sign = pattern[at]
        count = _COUNT.match(pattern, at) if sign == "{" else None
        if count is not None and (count[1] or count[3]):
            most = count[3] or count[1]
            times = int(most) if len(most) <= _DIGITS else 10**_DIGITS
            totals[-1] += last * max(0, times - 1)
            last, at = last * max(1, times), count.end()
            continue
        at += 1
        if sign == "(":
            totals.append(0)
            last = 0
        elif sign == ")":
            last = totals.pop() if len(totals) > 1 else 0
            totals[-1] += last
        elif sign not in "*+?|":
            at = _atom_end(pattern, at - 1)
            totals[-1] += 1
            last = 1
    return sum(totals)


def _atom_end(pattern: str, at: int) -> int:
    """Return where the escape, class or character at ``at`` ends."""
    if pattern[at] == "\\":
        named = at + 2 < len(pattern) and pattern[at + 1] in "pPxuU" and pattern[at + 2] == "{"
        end = pattern.find("}", at) if named else -1
        return end + 1 if end >= 0 else at + 2
    if pattern[at] != "[":
        return at + 1
    depth, at = 0, at
    while at < len(pattern):
        sign = pattern[at]
        if sign == "\\":
            at += 2
            continue
        at += 1
        if sign == "[":
            depth += 1
            at += pattern.startswith("^", at)
            at += pattern.startswith("]", at)  # a literal one
        elif sign == "]":
            depth -= 1
            if depth == 0:
                return at
    return at


def patterns_of(schema: Any) -> list[str]:
    """Return the regular expressions anywhere in a JSON schema."""
    if isinstance(schema, list):
        return [found for one in schema for found in patterns_of(one)]
    if not isinstance(schema, dict):
        return []
    own = [schema["pattern"]] if isinstance(schema.get("pattern"), str) else []
    named = schema.get("patternProperties")
    own += list(named) if isinstance(named, dict) else []
    return [*own, *(found for one in schema.values() for found in patterns_of(one))]
