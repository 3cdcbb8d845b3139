"""Removing what a study no longer needs: the weights and training states of trials that are not among the best."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from wrinklefree.sweep.findings import Findings
from wrinklefree.sweep.space import Space
from wrinklefree.sweep.trial import COMPLETE, STOPPED, Trial

_STATE = "state"
_WEIGHTS = ("*.safetensors", "*.gguf")


def tidy(space: Space, trials: Sequence[Trial], out: Path) -> None:
    """Remove states of all trials that are complete or stopped, and weights of all but the best, below ``out``.

    The best one stays whole; with several objectives the whole front does. Figures, recipes, logs and metrics stay.
    Failed trials stay as they are, because they may be tried again.
    """
    best = {trial.number for trial in Findings(space, tuple(trials)).best()}
    for trial in trials:
        if trial.state not in (COMPLETE, STOPPED) or trial.directory is None:
            continue
        directory = out / "trials" / Path(trial.directory).name
        for stage in space.stages:
            shutil.rmtree(directory / stage.name / _STATE, ignore_errors=True)
            for pattern in () if trial.number in best else _WEIGHTS:
                for path in (directory / stage.name).glob(pattern):
                    path.unlink(missing_ok=True)
