"""DecodingSettings: what is refused and what the message says."""

from __future__ import annotations

from typing import Any

import pytest

from wrinklefree.engine import DecodingSettings
from wrinklefree.errors import InputError


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("threshold", -0.1, "from 0 to 1"),
        ("threshold", 1.1, "from 0 to 1"),
        ("threshold", float("nan"), "a number"),
        ("threshold", True, "a number"),
        ("tokens_per_forward", 0, "an integer from 1"),
        ("tokens_per_forward", 2.0, "an integer from 1"),
        ("sub_block", 0, "an integer from 1"),
        ("window", 65, "from 1 to 64"),
        ("entropy_bound", -1, "at least 0"),
        ("entropy_bound", float("inf"), "at least 0"),
    ],
)
def test_settings_are_checked(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError, match=f"{name}: found .*{allowed}"):
        DecodingSettings(**{name: value})


def test_unknown_modes_and_two_rules_are_refused() -> None:
    with pytest.raises(InputError, match="unknown mode 'blok'; did you mean 'block'"):
        DecodingSettings(mode="blok")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tokens_per_forward and entropy_bound: found both"):
        DecodingSettings(tokens_per_forward=2, entropy_bound=0.1)
