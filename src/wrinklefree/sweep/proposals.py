"""What to try next: quasi-random or random points at first, then what a model of the finished trials proposes.

The only file that knows Ax. Nothing is kept between two proposals: Ax is built anew from the table's trials each
time, so that any worker can propose, and the same trials and seed give the same proposal.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from wrinklefree.sweep.space import BAYESIAN, CHOICE, MINIMIZE, RANDOM, SOBOL, Parameter, Space, Value
from wrinklefree.sweep.trial import COMPLETE, FAILED, STOPPED, Trial

if TYPE_CHECKING:
    from ax.api.client import Client

GIVEN = "given"
_LEAST_OBSERVED = 2  # a model of fewer finished trials says nothing

Proposal = tuple[dict[str, Value], str]


def propose(space: Space, trials: Sequence[Trial], most: int, say: Callable[[str], None]) -> list[Proposal]:
    """Return the next (parameters, origin) pairs, none when the study has ``most`` trials already.

    The given and the initial ones come all at once, and so do all of a study without a model; a model's one by one.
    ``say`` hears why a model could not propose; then it is the next quasi-random point.
    """
    count, first = len(trials), len(space.given)
    fixed = min(most, first + space.initial) if space.method == BAYESIAN else most
    if count < fixed:
        return [_fixed(space, number) for number in range(count, fixed)]
    if count >= most:
        return []
    observed = sum(trial.state == COMPLETE for trial in trials)
    if observed < max(_LEAST_OBSERVED, space.initial // 2):
        say(f"{observed} of {count} trials are complete; too few for a model, so the next one is quasi-random")
        return [_fixed(space, count)]
    try:
        return [(space.active(_from_model(space, trials)), BAYESIAN)]
    except Exception as error:  # of many kinds: a space that is exhausted, a matrix that cannot be factorised
        reason = " ".join(str(error).split())[:300]
        say(f"the model cannot propose ({type(error).__name__}: {reason}); the next trial is quasi-random")
        return [_fixed(space, count)]


def _fixed(space: Space, number: int) -> Proposal:
    if number < len(space.given):
        return dict(space.given[number]), GIVEN
    if space.method == RANDOM:
        shares = np.random.default_rng([space.seed, number]).random(len(space.parameters))
        return _point(space, shares), RANDOM
    return _point(space, _sobol(len(space.parameters), number - len(space.given), space.seed)), SOBOL


def _sobol(dimensions: int, index: int, seed: int) -> np.ndarray:
    """Point ``index`` of the scrambled Sobol sequence, float64 [dimensions] in [0, 1)."""
    from scipy.stats.qmc import Sobol

    points: np.ndarray = Sobol(dimensions, scramble=True, rng=seed).random_base2(max(index, 1).bit_length())
    return points[index]


def _point(space: Space, shares: np.ndarray) -> dict[str, Value]:
    """Every parameter has its own coordinate, whether it is active there or not."""
    values = {p.name: p.at(float(share)) for p, share in zip(space.parameters, shares, strict=True)}
    return space.active(values)


def _from_model(space: Space, trials: Sequence[Trial]) -> dict[str, Any]:
    with quiet():
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(space.seed + len(trials))
            client = fed_client(space, trials)
            (proposed,) = client.get_next_trials(max_trials=1).values()
    return {name: value for name, value in proposed.items() if value is not None}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what Ax and BoTorch say about their own dependencies and about data that they scale themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def fed_client(space: Space, trials: Sequence[Trial]) -> Client:
    """Return Ax's client as if it had proposed all these trials, with their figures.

    Trials that wait or run count as pending, so that the next proposal is another one. A stopped trial's last figures
    count when it has all that are needed.
    """
    from ax.api.client import Client

    client = Client(random_seed=space.seed + len(trials))
    children: dict[str, dict[Value, list[str]]] = {}
    for each in space.parameters:
        for value in each.when.values if each.when else ():
            children.setdefault(each.when.parent, {}).setdefault(value, []).append(each.name)  # type: ignore[union-attr]
    client.configure_experiment([_config(each, children.get(each.name)) for each in space.parameters], name=space.name)
    goals = [f"-m{i}" if goal == MINIMIZE else f"m{i}" for i, goal in enumerate(space.objectives.values())]
    # A constraint has a metric of its own, because Ax allows none on an objective.
    bounds = [f"c{i} {each.sign} {each.bound!r}" for i, each in enumerate(space.constraints)]
    client.configure_optimization(", ".join(goals), bounds or None)
    client.configure_generation_strategy(
        initialization_budget=0,
        min_observed_initialization_trials=0,
        initialize_with_center=False,
        use_existing_trials_for_initialization=True,
    )
    for trial in trials:
        _attach(client, space, trial)
    return client


def metric_names(space: Space) -> dict[str, str]:
    """Return Ax's name of every objective -> the figure's name."""
    return {f"m{i}": name for i, name in enumerate(space.objectives)}


def _attach(client: Client, space: Space, trial: Trial) -> None:
    index = client.attach_trial(dict(trial.parameters))
    figures = {f"m{i}": trial.figures.get(name) for i, name in enumerate(space.objectives)}
    figures |= {f"c{i}": trial.figures.get(each.figure) for i, each in enumerate(space.constraints)}
    known = {name: float(value) for name, value in figures.items() if value is not None and math.isfinite(value)}
    if trial.state == COMPLETE and len(known) == len(figures):
        client.complete_trial(index, known)
    elif trial.state == STOPPED:
        if len(known) == len(figures):
            client.attach_data(index, known)
            client.mark_trial_early_stopped(index)
        else:
            client.mark_trial_abandoned(index)
    elif trial.state in (COMPLETE, FAILED):
        client.mark_trial_failed(index)


def _config(parameter: Parameter, children: dict[Value, list[str]] | None) -> Any:
    from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

    if parameter.kind != CHOICE:
        bounds = (parameter.low, parameter.high)
        scaling = "log" if parameter.log else "linear"
        return RangeParameterConfig(parameter.name, bounds, parameter.kind, scaling=scaling)  # type: ignore[arg-type]
    kinds = {bool: "bool", int: "int", float: "float", str: "str"}
    return ChoiceParameterConfig(
        parameter.name,
        list(parameter.values),  # type: ignore[arg-type]
        kinds[type(parameter.values[0])],  # type: ignore[arg-type]
        is_ordered=parameter.ordered or len(parameter.values) == 2,
        dependent_parameters=children,
    )
