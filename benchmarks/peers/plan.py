"""What is measured: the TOML file of a comparison, its checks, and the interleaved order of the visits.

A visit is one process of one engine: it loads a shape once and runs a group of tests. Engines take turns, group by
group and round by round, so that a drift of the machine meets all alike.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.shapes import PEER_SHAPES

from wrinklefree.errors import InputError, unknown_name


@dataclass(frozen=True)
class BenchTest:
    """``pp512``: a prompt (or a pass) of 512 tokens, the logits of the last; ``tg64``: 64 decode steps."""

    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(pp|tg)[1-9][0-9]*", self.name):
            raise InputError(f"test: found {self.name!r}, allowed are ppN (a prompt of N tokens) and tgN (N steps)")

    @property
    def decodes(self) -> bool:
        return self.name.startswith("tg")

    @property
    def tokens(self) -> int:
        return int(self.name[2:])


@dataclass(frozen=True)
class Model:
    """What an engine runs for a shape. ``file``: of a peer; ``directory``: packed, of ours; ``options``: of ours,
    keyword arguments of `Engine.random` where there is no directory. ``head``: the type of embedding and head, which
    our random weights are given and a file or directory is believed to have.
    """

    head: str
    file: str = ""
    directory: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Contestant:
    """An engine of the comparison; ``program`` is a peer's llama-bench, empty for ours."""

    name: str
    models: Mapping[str, Model]
    program: str = ""
    flags: tuple[str, ...] = ()
    version: str = ""

    @property
    def ours(self) -> bool:
        return not self.program


@dataclass(frozen=True)
class Plan:
    """A whole comparison. ``launcher``: a command put before every visit, such as ``taskset -c 0,1``."""

    contestants: tuple[Contestant, ...]
    shapes: tuple[str, ...]
    threads: tuple[int, ...] = (1, 2)
    groups: tuple[tuple[BenchTest, ...], ...] = ()
    rounds: int = 3
    repeats: int = 2
    launcher: tuple[str, ...] = ()


@dataclass(frozen=True)
class Visit:
    """One process to run."""

    round: int
    shape: str
    threads: int
    tests: tuple[BenchTest, ...]
    contestant: Contestant


DEFAULT_GROUPS = (("pp4", "pp8", "pp32", "pp128", "tg64"), ("pp512",))


def read_plan(path: Path) -> Plan:
    """Return the plan in a TOML file; example.toml shows every key.

    Raises: InputError for a file that cannot be read, an unknown key or shape, or a value outside its range.
    """
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: {error}") from error
    _check_keys(raw, {"run", "peers", "ours"}, str(path))
    run = raw.get("run", {})
    _check_keys(run, {"threads", "shapes", "groups", "rounds", "repeats", "launcher"}, f"{path}: run")
    contestants = [_contestant(entry, f"{path}: ours", False) for entry in raw.get("ours", [])]
    contestants += [_contestant(entry, f"{path}: peers", True) for entry in raw.get("peers", [])]
    names = [contestant.name for contestant in contestants]
    if not names or len(set(names)) != len(names):
        raise InputError(f"{path}: found the engines {names}, needed is at least one and no name twice")
    shapes = run.get("shapes") or [s for s in PEER_SHAPES if any(s in c.models for c in contestants)]
    for count in (*run.get("threads", []), run.get("rounds", 1), run.get("repeats", 1)):
        if not isinstance(count, int) or count < 1:
            raise InputError(f"{path}: run: found {count!r} for threads, rounds or repeats, needed is at least 1")
    return Plan(
        tuple(contestants),
        tuple(_known_shape(shape) for shape in shapes),
        tuple(run.get("threads", Plan.threads)),
        tuple(tuple(BenchTest(name) for name in group) for group in run.get("groups", DEFAULT_GROUPS)),
        run.get("rounds", Plan.rounds),
        run.get("repeats", Plan.repeats),
        tuple(run.get("launcher", ())),
    )


def _contestant(raw: Mapping[str, Any], place: str, peer: bool) -> Contestant:
    needed = {"name", "models"} | ({"program"} if peer else set())
    _check_keys(raw, needed | {"flags", "version"}, place)
    if missing := needed - raw.keys():
        raise InputError(f"{place}: {raw.get('name', 'an engine')} lacks {', '.join(sorted(missing))}")
    models = {}
    for shape, model in raw["models"].items():
        where = f"{place}: {raw['name']}: {_known_shape(shape)}"
        _check_keys(model, {"head", "note"} | ({"file"} if peer else {"directory", "options"}), where)
        if "head" not in model or (peer and "file" not in model):
            raise InputError(f"{where}: needed are head" + (" and file" if peer else ""))
        models[shape] = Model(**model)
    flags = tuple(str(flag) for flag in raw.get("flags", ()))
    return Contestant(raw["name"], models, raw.get("program", ""), flags, raw.get("version", ""))


def _known_shape(shape: str) -> str:
    if shape not in PEER_SHAPES:
        raise unknown_name("shape", shape, PEER_SHAPES)
    return shape


def _check_keys(raw: Mapping[str, Any], allowed: set[str], place: str) -> None:
    if unknown := sorted(raw.keys() - allowed):
        raise InputError(f"{place}: found {', '.join(unknown)}, allowed are {', '.join(sorted(allowed))}")


def visits(plan: Plan) -> Iterator[Visit]:
    """Yield the visits in order; each round another engine is the first."""
    for turn in range(plan.rounds):
        for shape in plan.shapes:
            present = [contestant for contestant in plan.contestants if shape in contestant.models]
            first = turn % max(1, len(present))
            for threads in plan.threads:
                for group in plan.groups:
                    for contestant in present[first:] + present[:first]:
                        yield Visit(turn, shape, threads, group, contestant)
