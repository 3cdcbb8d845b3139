"""Which linears a conversion leaves in full precision: paths matched component by component, never as substrings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wrinklefree.errors import InputError


def excluded(name: str, patterns: Iterable[str]) -> bool:
    """Return whether the module path ``name`` contains a pattern as a run of whole components.

    ``"o_proj"`` and ``"layers.3.mlp"`` exclude ``model.layers.3.mlp.o_proj``; ``"proj"`` and ``"layers.1"`` do not
    exclude ``model.layers.11.mlp.o_proj``.
    """
    parts = name.split(".")
    for pattern in patterns:
        wanted = pattern.split(".")
        if any(parts[i : i + len(wanted)] == wanted for i in range(len(parts) - len(wanted) + 1)):
            return True
    return False


def check_exclude(names: Sequence[str], patterns: Sequence[str]) -> None:
    """Check that every pattern excludes one of ``names`` (the linears that would become ternary), and not all.

    Raises: InputError for a pattern that matches nothing, or when nothing is left.
    """
    for pattern in patterns:
        if not any(excluded(name, [pattern]) for name in names):
            raise InputError(
                f"exclude: {pattern!r} is no part of any linear's path (such as {names[0] if names else 'none'}); "
                "give whole components, for example o_proj, mlp or layers.0"
            )
    if names and all(excluded(name, patterns) for name in names):
        raise InputError(f"exclude: {list(patterns)} leaves nothing to convert")
