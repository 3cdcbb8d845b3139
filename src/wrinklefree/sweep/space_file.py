"""Reading SPACE.yaml: every key is known and every value is checked, or the file is refused with the place."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wrinklefree.artifact.files import read_bytes
from wrinklefree.errors import InputError, unknown_name
from wrinklefree.sweep.space import (
    BAYESIAN,
    CHOICE,
    FLOAT,
    INT,
    KEEP_ALL,
    KEEP_BEST,
    MAXIMIZE,
    METHODS,
    MINIMIZE,
    OUT,
    RESERVED,
    Condition,
    Constraint,
    Curve,
    Figure,
    Limits,
    Parameter,
    Space,
    Stage,
    named,
    put,
)

if TYPE_CHECKING:
    from wrinklefree.sweep.stopping import StoppingRule

_SHIPPED = Path(__file__).parents[1] / "recipes" / "sweep"
_LARGEST_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_STUDY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}\Z")
_CONSTRAINT = re.compile(r"\s*(\S+)\s*(<=|>=)\s*(\S+)\s*\Z")
_TOP = {
    "name", "constants", "method", "trials", "initial", "seed", "objectives", "constraints", "parameters", "given",
    "stages", "curve", "stopping", "limits", "keep",
}  # fmt: skip


def find_space(name: str) -> Path:
    """Return the file of a path, or of a shipped space's name.

    Raises: InputError when it is neither.
    """
    if Path(name).is_file() or "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    shipped = {path.stem: path for path in _SHIPPED.glob("*.yaml")}
    if name not in shipped:
        raise InputError(f"{name}: is no file, and {unknown_name('shipped space', name, shipped)}")
    return shipped[name]


def read_space(path: Path, changes: Mapping[str, str] | None = None) -> Space:
    """Return the space of a YAML file; ``changes``: other values of its constants.

    Raises: InputError naming file and key for whatever is unknown, missing, of the wrong type or out of range.
    """
    data = _yaml(read_bytes(path, _LARGEST_FILE_BYTES), str(path))
    return space_from(data, str(path), changes)


def space_from(data: object, place: str, changes: Mapping[str, str] | None = None) -> Space:
    """Return the space of a mapping as YAML gives it; ``place`` begins every message."""
    top = _mapping(data, place, _TOP)
    parameters = _parameters(_required(top, "parameters", place), f"{place}: parameters")
    names = {each.name for each in parameters}
    constants = _constants(top.get("constants", {}), f"{place}: constants", names, changes or {})
    stages = _stages(_required(top, "stages", place), f"{place}: stages", names, constants)
    figures = [f"{stage.name}.{figure}" for stage in stages for figure in stage.figures]
    used = {name for stage in stages for word in stage.words for name in named(word)}
    used |= {each.when.parent for each in parameters if each.when}
    for parameter in parameters:
        if parameter.name not in used:
            raise InputError(f"{place}: parameters.{parameter.name}: no stage uses it; write {{{parameter.name}}}")
    objectives = _objectives(_required(top, "objectives", place), f"{place}: objectives", figures)
    method = _one_of(top.get("method", BAYESIAN), METHODS, f"{place}: method")
    trials = _whole(top.get("trials", 20), f"{place}: trials", 1)
    space = Space(
        name=_study(_required(top, "name", place), f"{place}: name"),
        parameters=parameters,
        stages=stages,
        objectives=objectives,
        constraints=_constraints(top.get("constraints", []), f"{place}: constraints", figures),
        method=method,
        trials=trials,
        initial=_whole(top.get("initial", max(5, 2 * len(parameters))), f"{place}: initial", 1),
        seed=_whole(top.get("seed", 0), f"{place}: seed", 0),
        curve=_curve(top["curve"], f"{place}: curve", stages) if "curve" in top else None,
        stopping=_stopping(top["stopping"], f"{place}: stopping") if "stopping" in top else None,
        limits=_limits(top.get("limits", {}), f"{place}: limits"),
        keep=_one_of(top.get("keep", KEEP_ALL), (KEEP_ALL, KEEP_BEST), f"{place}: keep"),
    )
    if space.stopping and (space.curve is None or len(objectives) > 1):
        raise InputError(f"{place}: stopping: needs one objective, and curve: {{stage: NAME, metric: NAME}}")
    given = _list(top.get("given", []), f"{place}: given")
    checked = [
        space.check(_mapping(each, f"{place}: given[{i}]"), f"{place}: given[{i}]") for i, each in enumerate(given)
    ]
    return replace(space, given=tuple(checked))


def _yaml(data: bytes, place: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values only; 1e-3 is a number, and a key stands once."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise InputError(f"{place}, line {key.start_mark.line + 1}: the key {key.value!r} stands there twice")
            seen.add(str(key.value))
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    number = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9]*)?[eE][-+]?[0-9]+\Z")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    try:
        return yaml.load(data, Loader)  # of our own SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{place}: is no YAML ({' '.join(str(error).split())})") from error


def _parameters(data: object, place: str) -> tuple[Parameter, ...]:
    found = _mapping(data, place)
    if not found:
        raise InputError(f"{place}: there is nothing to search; name a parameter")
    parameters = {name: _parameter(name, each, f"{place}.{name}") for name, each in found.items()}
    for name, parameter in parameters.items():
        seen, when = {name}, parameter.when
        while when is not None:
            if when.parent not in parameters:
                raise InputError(f"{place}.{name}: when: {unknown_name('parameter', when.parent, parameters)}")
            if when.parent in seen:
                raise InputError(f"{place}.{name}: when: depends on itself")
            parent = parameters[when.parent]
            if parent.kind != CHOICE:
                raise InputError(f"{place}.{name}: when: {when.parent} is a {parent.kind}; only a choice can decide")
            for value in when.values:
                parent.check(value, f"{place}.{name}: when")
            seen.add(when.parent)
            when = parent.when
    return tuple(parameters.values())


def _parameter(name: str, data: object, place: str) -> Parameter:
    if not _NAME.match(name) or name in RESERVED:
        raise InputError(f"{place}: a parameter's name has letters, digits and _, and is none of {', '.join(RESERVED)}")
    given = _mapping(data, place)
    kind = _one_of(_required(given, "type", place), (FLOAT, INT, CHOICE), f"{place}: type")
    keys = {"type", "values", "ordered", "when"} if kind == CHOICE else {"type", "low", "high", "log", "when"}
    _mapping(given, place, keys)
    when = _condition(given["when"], f"{place}: when") if "when" in given else None
    if kind == CHOICE:
        values = _choices(_required(given, "values", place), f"{place}: values")
        ordered = _flag(given.get("ordered", False), f"{place}: ordered")
        if ordered and isinstance(values[0], str | bool):
            raise InputError(f"{place}: ordered: is for numbers")
        return Parameter(name, kind, values=values, ordered=ordered, when=when)
    low, high = (_number(_required(given, key, place), f"{place}: {key}") for key in ("low", "high"))
    if not low < high:
        raise InputError(f"{place}: low is {low:g} and high is {high:g}; low must be below high")
    if kind == INT and (low != int(low) or high != int(high)):
        raise InputError(f"{place}: an int needs whole numbers, found {low:g} and {high:g}")
    log = _flag(given.get("log", False), f"{place}: log")
    if log and low <= 0:
        raise InputError(f"{place}: low is {low:g}; with log: true it must be above 0")
    return Parameter(name, kind, low, high, log, when=when)


def _choices(data: object, place: str) -> tuple[Any, ...]:
    values = _list(data, place)
    if any(isinstance(each, bool) or not isinstance(each, int | float) for each in values):
        kinds = {type(each) for each in values}
        if len(kinds) > 1 or not kinds <= {str, bool}:
            raise InputError(f"{place}: found {values!r}; allowed are numbers, texts, or true and false, of one kind")
    elif any(isinstance(each, float) for each in values):
        values = [_number(each, place) for each in values]
    if len(values) < 2 or len(set(values)) < len(values):
        raise InputError(f"{place}: needs at least two values, all different; found {values!r}")
    return tuple(values)


def _condition(data: object, place: str) -> Condition:
    given = _mapping(data, place)
    if len(given) != 1:
        raise InputError(f"{place}: found {len(given)} parameters; one choice decides: when: {{NAME: VALUE}}")
    ((parent, wanted),) = given.items()
    return Condition(parent, tuple(wanted) if isinstance(wanted, list) else (wanted,))


def _constants(data: object, place: str, parameters: set[str], changes: Mapping[str, str]) -> dict[str, str]:
    constants = {name: _word(each, f"{place}.{name}") for name, each in _mapping(data, place).items()}
    for name in constants:
        if not _NAME.match(name) or name in parameters | set(RESERVED):
            raise InputError(f"{place}: {name!r} means something else already, or is no name")
    for name in changes:
        if name not in constants:
            raise InputError(f"--set {name}: {unknown_name('constant', name, constants)}")
    return constants | dict(changes)


def _stages(data: object, place: str, parameters: set[str], constants: Mapping[str, str]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    left = set(constants)
    for index, each in enumerate(_list(data, place)):
        stage = _stage(each, f"{place}[{index}]")
        left -= {name for word in stage.words for name in named(word)}
        stage = replace(stage, words=tuple(put(word, constants) for word in stage.words))
        earlier = {before.name for before in stages}
        if stage.name in earlier | parameters | set(RESERVED) | set(constants):
            raise InputError(f"{place}[{index}]: name: {stage.name!r} means something else already")
        for word in stage.words:
            for name in named(word):
                choices = parameters | earlier | set(RESERVED) | set(constants)
                if name not in choices:
                    raise InputError(f"{place}[{index}]: {word!r}: {unknown_name('name', name, choices)}")
        stages.append(stage)
    if not stages:
        raise InputError(f"{place}: there is nothing to run; name a stage")
    for name in left:
        raise InputError(f"{place}: the constant {name} is used by no stage; write {{{name}}}")
    return tuple(stages)


def _stage(data: object, place: str) -> Stage:
    given = _mapping(data, place, {"name", "wf", "run", "figures", "resumes"})
    name = _text(_required(given, "name", place), f"{place}: name")
    if not _NAME.match(name):
        raise InputError(f"{place}: name: {name!r}; allowed are letters, digits and _")
    if ("wf" in given) == ("run" in given):
        raise InputError(f"{place}: give one of wf: [VERB, WORD, ...] and run: [PROGRAM, WORD, ...]")
    ours = "wf" in given
    key = "wf" if ours else "run"
    words = tuple(_word(each, f"{place}: {key}") for each in _list(given[key], f"{place}: {key}"))
    if not words:
        raise InputError(f"{place}: {key}: is empty")
    if ours and words[0] == "train" and not any(OUT in named(word) for word in words):
        words = (*words, "--out", "{out}")
    if ours and "--json" not in words:
        words = (*words, "--json", "{json}")
    figures = _mapping(given.get("figures", {}), f"{place}: figures")
    read = {figure: _figure(each, f"{place}: figures.{figure}") for figure, each in figures.items()}
    resumes = _flag(given.get("resumes", ours and words[0] == "train"), f"{place}: resumes")
    return Stage(name, words, ours, read, resumes)


def _figure(data: object, place: str) -> Figure:
    if isinstance(data, str):
        return Figure(path=tuple(data.split(".")))
    given = _mapping(data, place, {"metric", "last"})
    metric = _text(_required(given, "metric", place), f"{place}: metric")
    return Figure(metric=metric, last=_whole(given.get("last", 1), f"{place}: last", 1))


def _objectives(data: object, place: str, figures: Sequence[str]) -> dict[str, str]:
    given = _mapping(data, place)
    if not given:
        raise InputError(f"{place}: name at least one: STAGE.FIGURE: minimize")
    for figure, goal in given.items():
        _known_figure(figure, figures, place)
        _one_of(goal, (MINIMIZE, MAXIMIZE), f"{place}: {figure}")
    return dict(given)


def _constraints(data: object, place: str, figures: Sequence[str]) -> tuple[Constraint, ...]:
    constraints = []
    for each in _list(data, place):
        found = _CONSTRAINT.match(str(each))
        if not found:
            raise InputError(f"{place}: {each!r}; allowed is STAGE.FIGURE <= NUMBER (or >=)")
        _known_figure(found[1], figures, place)
        constraints.append(Constraint(found[1], found[2], _number(found[3], f"{place}: {each!r}")))
    return tuple(constraints)


def _known_figure(name: str, figures: Sequence[str], place: str) -> None:
    if not figures:
        raise InputError(f"{place}: no stage has figures; add figures: {{NAME: PATH}} to a stage")
    if name not in figures:
        raise InputError(f"{place}: {unknown_name('figure', name, figures)}")


def _curve(data: object, place: str, stages: Sequence[Stage]) -> Curve:
    given = _mapping(data, place, {"stage", "metric"})
    names = {stage.name for stage in stages}
    stage = _one_of(_required(given, "stage", place), names, f"{place}: stage")
    return Curve(stage, _text(_required(given, "metric", place), f"{place}: metric"))


def _stopping(data: object, place: str) -> StoppingRule:
    from wrinklefree.sweep.stopping import read_rule  # brings numpy

    return read_rule(_mapping(data, place), place)


def _limits(data: object, place: str) -> Limits:
    given = _mapping(data, place, {"trial_seconds", "silent_seconds", "lost", "failures"})
    values: dict[str, Any] = {}
    for name in ("trial_seconds", "silent_seconds"):
        if name in given:
            values[name] = _number(given[name], f"{place}: {name}")
            if values[name] <= 0:
                raise InputError(f"{place}: {name}: found {values[name]:g}, it must be above 0")
    for name, least in (("lost", 0), ("failures", 1)):
        if name in given:
            values[name] = _whole(given[name], f"{place}: {name}", least)
    return Limits(**values)


def _mapping(data: object, place: str, keys: set[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InputError(f"{place}: found {data!r}, a mapping of names is needed")
    for name in data:
        if not isinstance(name, str):
            raise InputError(f"{place}: the key {name!r} is no text; put it in quotes")
        if keys is not None and name not in keys:
            raise InputError(f"{place}: {unknown_name('key', name, keys)}")
    return data


def _required(given: Mapping[str, Any], key: str, place: str) -> Any:
    if key not in given:
        raise InputError(f"{place}: {key} is missing")
    return given[key]


def _list(data: object, place: str) -> list[Any]:
    if not isinstance(data, list):
        raise InputError(f"{place}: found {data!r}, a list is needed")
    return data


def _word(data: object, place: str) -> str:
    if not isinstance(data, str | int | float):
        raise InputError(f"{place}: found {data!r}, a word is needed (in quotes where it has braces or a colon)")
    return str(data).lower() if isinstance(data, bool) else str(data)


def _text(data: object, place: str) -> str:
    if not isinstance(data, str) or not data:
        raise InputError(f"{place}: found {data!r}, a text is needed")
    return data


def _study(data: object, place: str) -> str:
    name = _text(data, place)
    if not _STUDY.match(name):
        raise InputError(f"{place}: found {name!r}; allowed are up to 80 letters, digits, dots, - and _")
    return name


def _one_of(data: object, allowed: Sequence[str] | set[str], place: str) -> str:
    if data not in allowed:
        raise InputError(f"{place}: {unknown_name('value', str(data), allowed)}")
    return str(data)


def _flag(data: object, place: str) -> bool:
    if not isinstance(data, bool):
        raise InputError(f"{place}: found {data!r}, allowed is true or false")
    return data


def _whole(data: object, place: str, least: int) -> int:
    if not isinstance(data, int) or isinstance(data, bool) or data < least:
        raise InputError(f"{place}: found {data!r}, a whole number from {least} on is needed")
    return data


def _number(data: object, place: str) -> float:
    try:
        value = math.nan if isinstance(data, bool) else float(data)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place}: found {data!r}, a finite number is needed")
    return value
