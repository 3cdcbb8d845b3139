"""What a study searches: typed parameters, the commands of a trial, what they are judged by.

A space is read from a file by `sweep.space_file`; here is what it means once it has been read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from wrinklefree.errors import InputError, unknown_name

if TYPE_CHECKING:
    from wrinklefree.sweep.stopping import StoppingRule

FLOAT, INT, CHOICE = "float", "int", "choice"
SOBOL, RANDOM, BAYESIAN = "sobol", "random", "bayesian"
METHODS = (BAYESIAN, SOBOL, RANDOM)
KEEP_ALL, KEEP_BEST = "all", "best"
MINIMIZE, MAXIMIZE = "minimize", "maximize"
# Names a command may use besides parameters and earlier stages.
OUT, JSON, TRIAL, STUDY = "out", "json", "trial", "study"
RESERVED = (OUT, JSON, TRIAL, STUDY)
_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.]*)\}")

Value = float | int | str | bool


@dataclass(frozen=True)
class Condition:
    """Holds when the choice ``parent`` is active and has one of ``values``."""

    parent: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Parameter:
    """``low`` and ``high`` belong to the range; ``log``: uniform in the logarithm. ``ordered``: of a choice."""

    name: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    values: tuple[Value, ...] = ()
    ordered: bool = False
    when: Condition | None = None

    def at(self, share: float) -> Value:
        """Return the value at a point of [0, 1): every whole number and every choice gets an equal part."""
        if self.kind == CHOICE:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = (self.low, self.high) if self.kind == FLOAT else (self.low - 0.5, self.high + 0.5)
        if self.log:
            low = max(low, self.low * 0.5) if self.kind == INT else low
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.kind == INT else value

    def check(self, value: Value, place: str) -> Value:
        """Return a given value in the parameter's type.

        Raises: InputError when the parameter cannot have it.
        """
        if self.kind == CHOICE:
            for each in self.values:
                if each == value and isinstance(each, bool) == isinstance(value, bool):
                    return each
            raise InputError(f"{place}: {self.name} is {value!r}, allowed is one of {list(self.values)}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        whole = number and (self.kind == FLOAT or float(value) == int(value))
        if not whole or not self.low <= float(value) <= self.high:
            raise InputError(f"{place}: {self.name} is {value!r}, allowed is {self.kind} {self.low:g} to {self.high:g}")
        return int(value) if self.kind == INT else float(value)


@dataclass(frozen=True)
class Figure:
    """A number of a stage: at ``path`` in its JSON result, or the mean of a metric's ``last`` lines."""

    path: tuple[str, ...] = ()
    metric: str | None = None
    last: int = 1


@dataclass(frozen=True)
class Stage:
    """One command of a trial. ``ours``: the words follow `wf`; else the first one is a program.

    ``resumes``: started again in the same directory it goes on where it was; else what it left is removed first.
    """

    name: str
    words: tuple[str, ...]
    ours: bool = True
    figures: Mapping[str, Figure] = field(default_factory=dict)
    resumes: bool = False


@dataclass(frozen=True)
class Constraint:
    """A figure's bound: ``sign`` is "<=" or ">="."""

    figure: str
    sign: str
    bound: float

    def holds(self, value: float) -> bool:
        return value <= self.bound if self.sign == "<=" else value >= self.bound


@dataclass(frozen=True)
class Limits:
    """``trial_seconds``: of one trial, over all attempts of one worker's; ``silent_seconds``: until a worker that is
    not heard of is given up; ``lost``: how many workers a trial may lose and still be run again; ``failures``: a
    study whose first so many trials all fail ends, because then it is the space that is wrong.
    """

    trial_seconds: float | None = None
    silent_seconds: float = 120.0
    lost: int = 2
    failures: int = 5


@dataclass(frozen=True)
class Curve:
    """The objective while it runs: a metric of a stage's metrics.jsonl, by step."""

    stage: str
    metric: str


@dataclass(frozen=True)
class Space:
    """A study. ``objectives``: "STAGE.figure" -> minimize or maximize. ``initial``: quasi-random trials before a model
    proposes. ``given``: parameter sets that are tried first. ``keep``: of which trials the weights stay.
    """

    name: str
    parameters: tuple[Parameter, ...]
    stages: tuple[Stage, ...]
    objectives: Mapping[str, str]
    constraints: tuple[Constraint, ...] = ()
    given: tuple[Mapping[str, Value], ...] = ()
    method: str = BAYESIAN
    trials: int = 20
    initial: int = 5
    seed: int = 0
    curve: Curve | None = None
    stopping: StoppingRule | None = None
    limits: Limits = Limits()
    keep: str = KEEP_ALL

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides which trials there are and what they measure: not name, number, limits and keep."""
        values = asdict(self)
        for name in ("name", "trials", "limits", "keep"):
            del values[name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def needed(self) -> tuple[str, ...]:
        """Figures without which a trial says nothing: of objectives and constraints."""
        return tuple(dict.fromkeys([*self.objectives, *(each.figure for each in self.constraints)]))

    def feasible(self, figures: Mapping[str, float]) -> bool:
        """Return whether every constraint's figure is there and holds."""
        return all(each.figure in figures and each.holds(figures[each.figure]) for each in self.constraints)

    def active(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return the values without those whose condition does not hold, in the space's order."""
        parameters = {each.name: each for each in self.parameters}

        def holds(name: str) -> bool:
            when = parameters[name].when
            return when is None or (holds(when.parent) and values.get(when.parent) in when.values)

        return {name: values[name] for name in parameters if name in values and holds(name)}

    def check(self, values: Mapping[str, Any], place: str) -> dict[str, Value]:
        """Return a complete set of values in the parameters' types.

        Raises: InputError for an unknown, inactive, missing or impossible one.
        """
        parameters = {each.name: each for each in self.parameters}
        for name in values:
            if name not in parameters:
                raise InputError(f"{place}: {unknown_name('parameter', str(name), parameters)}")
        typed = {name: parameters[name].check(value, place) for name, value in values.items()}
        active = self.active(typed)
        for name in typed.keys() - active.keys():
            raise InputError(f"{place}: {name} is given, but the condition for it does not hold")
        for name, parameter in parameters.items():
            when = parameter.when
            if name not in active and (when is None or active.get(when.parent) in when.values):
                raise InputError(f"{place}: {name} is missing")
        return active


def named(word: str) -> tuple[str, ...]:
    """Return the names in braces in a command's word."""
    return tuple(_PLACE.findall(word))


def put(word: str, known: Mapping[str, str]) -> str:
    """Return a command's word with those names in braces replaced that are known."""
    return _PLACE.sub(lambda found: known.get(found[1], found[0]), word)


def words_of(stage: Stage, space: Space, values: Mapping[str, Value], places: Mapping[str, str]) -> list[str]:
    """Return a stage's words with names replaced; a word that names an inactive parameter is left out.

    ``places``: what stands for `out`, `json`, `trial`, `study` and the earlier stages.
    """
    known = {**{name: text_of(value) for name, value in values.items()}, **places}
    inactive = {each.name for each in space.parameters} - values.keys()
    chosen = [word for word in stage.words if not inactive & set(named(word))]
    return [put(word, known) for word in chosen]


def text_of(value: Value) -> str:
    """Return a value as a command's word has it: true and false in small letters, floats exactly."""
    return str(value).lower() if isinstance(value, bool) else str(value)
