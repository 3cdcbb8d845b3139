"""Where a run's figures go: a JSONL file always, a tracker when asked, Weights & Biases whenever its key is there.

A tracker is a convenience. One that cannot start, or fails later, is switched off with its reason; training and the
JSONL file go on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor, nn

from wrinklefree.errors import MissingDependencyError, unknown_name
from wrinklefree.train.audit import note
from wrinklefree.train.audit import say as say  # for those who write to the person who watches
from wrinklefree.train.parallel import whole_bit_linears

TRACKERS = ("none", "trackio", "tensorboard", "wandb")
_NO_KEY = """\
##########################################################################
# WANDB_API_KEY is not set: Weights & Biases is OFF. Training continues. #
##########################################################################
Figures of every step: {path}"""


class Sink(Protocol):
    """Takes the figures of a step."""

    name: str

    def log(self, figures: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class _Jsonl:
    name = "metrics.jsonl"

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
        self.name = str(module.__name__)
        # They chat on standard output, which belongs to the command's own result.
        with contextlib.redirect_stdout(sys.stderr):
            module.init(**start)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._module.log(dict(figures), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._module.finish()


class _TensorBoard:
    name = "tensorboard"

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Metrics:
    """All sinks of a run as one; a sink that fails is dropped, and the others never notice."""

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write the figures of one step to every sink."""
        for sink in list(self._sinks):
            try:
                sink.log(figures, step)
            except Exception as error:
                self._sinks.remove(sink)
                _say_off(sink.name, error, f"from step {step} on")

    def close(self) -> None:
        """Flush and close."""
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                _say_off(sink.name, error, "and its last figures may be missing")


def _say_off(name: str, error: Exception, since: str) -> None:
    reason = " ".join(str(error).split())[:300]
    note("fallback", f"{name} is OFF {since}: {type(error).__name__}: {reason}. Training continues without it.")


@contextmanager
def open_metrics(
    out: Path,
    name: str,
    config: Mapping[str, Any],
    tracker: str = "none",
    project: str = "wrinklefree",
    enabled: bool = True,
    run_id: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
) -> Iterator[Metrics]:
    """Open ``out/metrics.jsonl`` and the trackers; without WANDB_API_KEY say loudly that W&B is off and go on.

    ``run_id``: under which W&B continues the same curve when a run is resumed; None takes the name.
    ``group``: which runs a tracker shows together; ``tags``: what W&B finds a run by.
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
    start: dict[str, Callable[[], Sink]] = {
        "trackio": lambda: _trackio(out, project, name, config, group),
        "tensorboard": lambda: _tensorboard(out),
        "wandb": lambda: _wandb(out, project, name, run_id or name, config, group=group, tags=list(tags) or None),
    }
    wanted = [] if tracker in ("none", "wandb") else [tracker]
    if os.environ.get("WANDB_API_KEY"):
        wanted.append("wandb")
    else:
        note("credentials_missing", _NO_KEY.format(path=path))
    try:
        for each in wanted:
            try:
                sinks.append(start[each]())
            except MissingDependencyError:
                raise
            except Exception as error:
                _say_off(each, error, "for this run")
        yield metrics
    finally:
        metrics.close()


def _trackio(out: Path, project: str, name: str, config: Mapping[str, Any], group: str | None) -> Sink:
    # Its files belong to the run (of several in one process to the first: it reads this once), wherever the process
    # goes meanwhile; and it must not look for a network.
    os.environ.setdefault("TRACKIO_DIR", str((out / "trackio").resolve()))
    try:
        import trackio
    except ImportError as error:
        raise MissingDependencyError(
            "tracker=trackio: the package is missing; pip install 'wrinklefree[train]'"
        ) from error
    return _Module(
        trackio, project=project, name=name, group=group, config=dict(config), embed=False, resume="allow",
        auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip


def _tensorboard(out: Path) -> Sink:
    try:
        return _TensorBoard(out / "tensorboard")
    except ImportError as error:
        raise MissingDependencyError(
            "tracker=tensorboard: the package is missing; pip install 'wrinklefree[tensorboard]'"
        ) from error


def _wandb(out: Path, project: str, name: str, identity: str, config: Mapping[str, Any], **more: Any) -> Sink:
    # A server that does not answer must not hold the training for long.
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "60")
    try:
        import wandb
    except ImportError as error:
        raise MissingDependencyError(
            "WANDB_API_KEY is set but wandb is missing: pip install 'wrinklefree[wandb]', or unset the key"
        ) from error
    about = {"project": project, "id": identity, "name": name, "config": dict(config), **more}
    return _Module(wandb, **about, dir=str(out), resume="allow")


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
