"""The options of `wf generate` and `wf chat` that say how tokens are decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.engine import DecodingSettings, Generation

Mode = Annotated[
    str,
    typer.Option(help="ar (token by token), block (block diffusion), speculative (proposed and verified), or auto"),
]
Threshold = Annotated[
    float | None, typer.Option(help="block: decide tokens more probable than this (default 0.9), at least one a pass")
]
TokensPerForward = Annotated[int | None, typer.Option(help="block: decide so many in a pass instead")]
EntropyBound = Annotated[
    float | None, typer.Option(help="block: decide the surest instead, as long as their entropy (nats) stays within")
]
SubBlock = Annotated[
    int | None, typer.Option(help="block: positions that are open at a time (default 8, or the block if smaller)")
]
Window = Annotated[int | None, typer.Option(help="speculative: positions proposed in a pass (default: as it pays)")]
Trace = Annotated[Path | None, typer.Option(help="write what each pass decided, as JSON lines (see wf trace)")]


def decoding_settings(
    mode: str,
    threshold: float | None,
    tokens_per_forward: int | None,
    entropy_bound: float | None,
    sub_block: int | None,
    window: int | None,
) -> DecodingSettings:
    """Return the settings. Raises: InputError for a value out of range, and for two rules at once."""
    from wrinklefree.engine import DecodingSettings

    if threshold is not None and (tokens_per_forward is not None or entropy_bound is not None):
        other = "--tokens-per-forward" if entropy_bound is None else "--entropy-bound"
        raise InputError(f"--threshold and {other}: found both, they are two rules; give one")
    given: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
    return DecodingSettings(
        mode=mode,  # type: ignore[arg-type]
        tokens_per_forward=tokens_per_forward,
        entropy_bound=entropy_bound,
        sub_block=sub_block,
        window=window,
        **given,
    )


def check_used(
    answer: Generation,
    threshold: float | None,
    tokens_per_forward: int | None,
    entropy_bound: float | None,
    sub_block: int | None,
    window: int | None,
) -> None:
    """Raise InputError for an option that the answer's mode does not have; the values are None where not given."""
    given: dict[str, dict[str, float | None]] = {
        "block": {
            "--threshold": threshold, "--tokens-per-forward": tokens_per_forward, "--entropy-bound": entropy_bound,
            "--sub-block": sub_block,
        },
        "speculative": {"--window": window},
    }  # fmt: skip
    for mode, options in given.items():
        for name, value in options.items():
            if value is not None and answer.mode != mode:
                raise InputError(f"{name}: is an option of mode {mode}, but this text is decoded in mode {answer.mode}")


def check_trace(path: Path | None) -> None:
    """Raise InputError where a trace could not be written, before anything is computed."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        what = "is a directory" if path.is_dir() else f"the directory {path.parent} does not exist"
        raise InputError(f"--trace {path}: {what}")
