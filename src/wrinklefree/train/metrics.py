"""Where a run's figures go: a JSONL file always, a tracker when asked, Weights & Biases when its key is there."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor, nn

from wrinklefree.errors import MissingDependencyError, unknown_name
from wrinklefree.train.parallel import whole_bit_linears

TRACKERS = ("none", "trackio")
_NO_KEY = """\
##########################################################################
# WANDB_API_KEY is not set: Weights & Biases is OFF. Training continues. #
##########################################################################
Figures of every step: {path}"""


_speaks = True


def first_speaks(rank: int) -> None:
    """Let only the first of several processes `say` what all of them would."""
    global _speaks
    _speaks = rank == 0


def say(line: str) -> None:
    """Print one line for the person who watches the run."""
    if _speaks:
        print(line, file=sys.stderr, flush=True)


class Sink(Protocol):
    """Takes the figures of a step."""

    def log(self, figures: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class _Jsonl:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: TextIO = path.open("a", encoding="utf-8")

    def log(self, figures: Mapping[str, float], step: int) -> None:
        # JSON has no NaN; a figure that is none is written as null.
        clean = {k: v if math.isfinite(v) else None for k, v in figures.items()}
        self._stream.write(json.dumps({"step": step, **clean}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


class _Module:
    """trackio and wandb share one interface: init, log, finish."""

    def __init__(self, module: Any, **start: Any) -> None:
        self._module = module
        # They chat on standard output, which belongs to the command's own result.
        with contextlib.redirect_stdout(sys.stderr):
            module.init(**start)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._module.log(dict(figures), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._module.finish()


class Metrics:
    """All sinks of a run as one."""

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write the figures of one step to every sink."""
        for sink in self._sinks:
            sink.log(figures, step)

    def close(self) -> None:
        """Flush and close; a sink that fails to close must not lose the others."""
        for sink in self._sinks:
            sink.close()


@contextmanager
def open_metrics(
    out: Path,
    name: str,
    config: Mapping[str, Any],
    tracker: str = "none",
    project: str = "wrinklefree",
    enabled: bool = True,
) -> Iterator[Metrics]:
    """Open ``out/metrics.jsonl`` and the trackers; without WANDB_API_KEY say loudly that W&B is off and go on.

    ``enabled`` is false for all processes but the first: they log nothing.

    Raises: InputError for an unknown tracker, MissingDependencyError for one that is not installed.
    """
    if tracker not in TRACKERS:
        raise unknown_name("tracker", tracker, TRACKERS)
    if not enabled:
        yield Metrics([])
        return
    path = out / "metrics.jsonl"
    sinks: list[Sink] = [_Jsonl(path)]
    metrics = Metrics(sinks)
    try:
        if tracker == "trackio":
            sinks.append(_trackio(out, project, name, config))
        if os.environ.get("WANDB_API_KEY"):
            sinks.append(_wandb(out, project, name, config))
        else:
            say(_NO_KEY.format(path=path))
        yield metrics
    finally:
        metrics.close()


def _trackio(out: Path, project: str, name: str, config: Mapping[str, Any]) -> Sink:
    # Its files belong to the run, and it must not look for a network.
    os.environ.setdefault("TRACKIO_DIR", str(out / "trackio"))
    try:
        import trackio
    except ImportError as error:
        raise MissingDependencyError(
            "tracker=trackio: the package is missing; pip install 'wrinklefree[train]'"
        ) from error
    return _Module(
        trackio, project=project, name=name, config=dict(config), embed=False, resume="allow",
        auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip


def _wandb(out: Path, project: str, name: str, config: Mapping[str, Any]) -> Sink:
    try:
        import wandb
    except ImportError as error:
        raise MissingDependencyError(
            "WANDB_API_KEY is set but wandb is missing: pip install wandb, or unset the key"
        ) from error
    return _Module(wandb, project=project, id=name, name=name, config=dict(config), dir=str(out), resume="allow")


class TernaryFigures:
    """Share of zeros, and of codes that changed since the last look, over all `BitLinear` layers."""

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return ``ternary/zeros`` and, from the second call on, ``ternary/flips``; empty without such layers."""
        zeros = flips = total = compared = 0
        for name, layer in whole_bit_linears(model):
            codes = layer.ternary()[0].cpu()
            zeros += int((codes == 0).sum())
            total += codes.numel()
            if name in self._before:
                flips += int((codes != self._before[name]).sum())
                compared += codes.numel()
            self._before[name] = codes
        if not total:
            return {}
        figures = {"ternary/zeros": zeros / total}
        return {**figures, "ternary/flips": flips / compared} if compared else figures


Say = Callable[[str], None]
