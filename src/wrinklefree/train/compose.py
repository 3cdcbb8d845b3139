"""From recipe files and overrides to a `Recipe`. The only module that knows Hydra.

Hydra composes ``recipes/config.yaml`` with one file of each group (model, training, data, optimizer); overrides are
``group=name`` and ``key.path=value``. What comes out is typed at once. A key that does not exist, or that nothing
would read in this recipe, is an error.
"""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrinklefree.data.sources import source_from_name
from wrinklefree.errors import InputError, unknown_name
from wrinklefree.objectives import OBJECTIVES
from wrinklefree.objectives.balance import Balance
from wrinklefree.objectives.manager import Term
from wrinklefree.train.recipe import Recipe
from wrinklefree.train.typed import build, convert, schema_keys

GROUPS = ("training", "model", "data", "optimizer")
_TERM_KEYS = ("weight", "balance")


@dataclass(frozen=True)
class RecipeFile:
    """One recipe of a group, and the first line of its comment."""

    group: str
    name: str
    summary: str


def recipes_directory() -> Path:
    """Return where the recipe files are installed."""
    return Path(str(importlib.resources.files("wrinklefree") / "recipes"))


def list_recipes() -> list[RecipeFile]:
    """Return every recipe file, by group and name."""
    found = []
    for group in GROUPS:
        for path in sorted((recipes_directory() / group).glob("*.yaml")):
            comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
            summary = next((line[2:] for line in comments if not line.startswith("# @")), "")
            found.append(RecipeFile(group, path.stem, summary))
    return found


def compose(overrides: Sequence[str]) -> Recipe:
    """Return the recipe of ``overrides``: ``training=NAME``, other groups, and ``key.path=value``.

    ``model=PATH`` and ``data=PATH`` take a path as well as a name.

    Raises: InputError for an unknown recipe or key (with the nearest match), a wrong type, or a key that is unused.
    """
    arguments = [_with_paths(override) for override in overrides]
    raw = _hydra([argument for group in arguments for argument in _checked(group)])
    terms = _terms(raw.pop("objectives", None) or {})
    recipe = build(Recipe, raw, "", {"objectives": terms})
    given = [argument.lstrip("+").partition("=")[0] for group in arguments for argument in group]
    refuse_unused(recipe, given)
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """Return every value of ``recipe`` as YAML."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(recipe.resolved()))


def refuse_unused(recipe: Recipe, keys: Sequence[str]) -> None:
    """Raise InputError for a given key that nothing would read in this recipe."""
    for key in keys:
        for name, (unread, why) in _UNREAD.items():
            if (key == name or key.startswith(f"{name}.")) and unread(recipe):
                raise InputError(f"{key}: nothing would read it, because {why}; remove it")


def _not_kind(*kinds: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.optimizer.kind not in kinds


# Kinds of optimizer, and the settings that these alone read.
_READ_BY: dict[tuple[str, ...], tuple[str, ...]] = {
    ("adamw", "muon", "muonclip", "apollo", "apollo_mini"): ("fused",),
    ("muonclip",): ("clip_threshold", "clip_alpha", "clip_every"),
    ("muon", "muonclip"): ("muon_lr", "muon_scaling", "muon_momentum", "muon_nesterov", "muon_steps", "muon_dtype"),
    ("apollo", "apollo_mini"): (
        "apollo_lr", "apollo_update_every", "apollo_scale", "apollo_limiter", "apollo_seed",
    ),
    ("apollo",): ("apollo_rank",),
}  # fmt: skip

_UNREAD: dict[str, tuple[Callable[[Recipe], bool], str]] = {
    "schedule.decay_ratio": (
        lambda r: not r.schedule.kind.startswith("wsd"),
        "only wsd and wsd_cosine have a decay phase",
    ),
    "schedule.min_ratio": (lambda r: r.schedule.kind == "constant", "schedule.kind=constant does not decay"),
    "schedule.warmup_ratio": (lambda r: r.schedule.warmup_tokens is not None, "schedule.warmup_tokens is set"),
    "strength.warmup_ratio": (
        lambda r: r.strength.kind == "constant" or r.strength.warmup_tokens is not None,
        "strength.kind is constant or strength.warmup_tokens is set",
    ),
    "strength.warmup_tokens": (lambda r: r.strength.kind == "constant", "strength.kind is constant"),
    "strength.start": (lambda r: r.strength.kind == "constant", "strength.kind is constant"),
    "model.compute_exclude": (lambda r: r.model.compute == "float", "model.compute is float"),
    "model.fp8_scaling": (lambda r: r.model.compute != "fp8", "only model.compute=fp8 reads it"),
    "model.fp8_min_size": (lambda r: r.model.compute != "fp8", "only model.compute=fp8 reads it"),
    **{
        f"saliency.{name}": (lambda r: r.saliency.kind == "none", "saliency.kind is none")
        for name in ("score", "initial", "final", "hold", "end", "memory", "update_interval")
    },
    "low_rank.trainable": (lambda r: r.low_rank.init == "none", "low_rank.init is none"),
    **{
        f"low_rank.{name}": (lambda r: r.low_rank.init in ("none", "keep"), "low_rank.init is none or keep")
        for name in ("rank", "exclude")
    },
    **{
        f"low_rank.{name}": (lambda r: r.low_rank.init != "closed_form", "only low_rank.init=closed_form reads it")
        for name in ("sequences", "alternations", "damping")
    },
    "curriculum.interpolation": (lambda r: not r.curriculum.phases, "the curriculum has no phases"),
    **{
        f"optimizer.{name}": (_not_kind(*kinds), f"only optimizer.kind={' or '.join(kinds)} reads it")
        for kinds, names in _READ_BY.items()
        for name in names
    },
    "diffusion": (lambda r: not r.diffuses, "no objective works on noised tokens (block_diffusion, tcs)"),
    **{
        f"influence.{name}": (lambda r: r.influence.kind == "none", "influence.kind is none")
        for name in ("every", "warmup", "samples", "min_weight", "max_weight")
    },
    **{
        f"influence.{name}": (lambda r: not r.influence.needs_probe, "only influence.kind=datainf or distillation do")
        for name in ("lr", "smoothing", "parameters", "projection", "probe", "probe_sequences")
    },
    "data.prefetch": (lambda r: r.data.workers == 0, "data.workers=0 builds no batch ahead"),
    "influence.probe_share": (
        lambda r: not r.influence.needs_probe or bool(r.influence.probe),
        "influence.kind needs no probe, or influence.probe gives one",
    ),
    "influence.landmarks": (lambda r: r.influence.kind != "distillation", "only influence.kind=distillation does"),
    "influence.memory": (lambda r: r.influence.kind != "online", "only influence.kind=online does"),
    "batch.memory_gib": (lambda r: not r.batch.find, "batch.find is false"),
    **{
        f"sync.{name}": (lambda r: r.sync.url is None, "sync.url is not set")
        for name in ("mode", "keep_last", "timeout_seconds")
    },
    **{
        f"model.{name}": (lambda r: not r.model.convert, "model.convert is false")
        for name in ("granularity", "group_size", "quantizer", "subln", "exclude")
    },
    **{f"strength.{name}": (lambda r: not r.model.convert, "model.convert is false") for name in ("kind", "end")},
    **{
        f"task.{name}": (lambda r: r.task is not None and r.task.kind == "completion", "task.kind is completion")
        for name in ("problem", "text", "text_pair", "join", "label", "labels")
    },
    **{
        f"task.{name}": (lambda r: r.task is not None and r.task.kind != "completion", "task.kind is classification")
        for name in ("prompt", "completion")
    },
    "data.held_out_share": (
        lambda r: r.task is not None and (r.task.held_out or r.task.held_out_split) is not None,
        "task.held_out or task.held_out_split gives the held-out examples",
    ),
    "data.cache_dir": (lambda r: r.task is not None, "the examples of a task are encoded anew each time"),
    "model.teacher": (lambda r: not r.taught, "no objective needs a teacher"),
    **{
        f"teacher.{name}": (lambda r: r.teacher.kind != "remote", "only teacher.kind=remote reads it")
        for name in ("timeout_seconds", "retries", "ahead", "key_variable")
    },
    **{
        f"teacher.{name}": (lambda r: not r.taught or r.teacher.kind == "remote", "the teacher is no local model")
        for name in ("source", "dtype", "weights", "attention")
    },
    "teacher.url": (lambda r: r.teacher.kind != "remote", "only teacher.kind=remote reads it"),
    "teacher.model": (lambda r: r.teacher.kind == "local", "only teacher.kind=remote and its cache read it"),
    "teacher": (lambda r: not r.taught, "no objective needs a teacher"),
}


def _terms(raw: Any) -> dict[str, Term]:
    """Each objective's settings are its own dataclass; weight and balance belong to the manager."""
    if not isinstance(raw, Mapping):
        raise InputError(f"objectives: found {raw!r}, needed are objectives by name")
    terms = {}
    for name, given in raw.items():
        if name not in OBJECTIVES:
            raise unknown_name("objective", str(name), OBJECTIVES)
        place = f"objectives.{name}"
        settings = dict(given or {})
        weight = convert(float, settings.pop("weight", 1.0), f"{place}.weight")
        balance = convert(Balance | None, settings.pop("balance", None), f"{place}.balance")
        terms[str(name)] = Term(build(OBJECTIVES[name], settings, place), weight, balance)
    return terms


def _with_paths(override: str) -> list[str]:
    """``model=some/path`` is ``model=local`` with that source; the same for ``data``."""
    key, equals, value = override.partition("=")
    names = {file.name for file in list_recipes() if file.group == key}
    if not equals or key not in ("model", "data") or value in names:
        return [override]
    if not (Path(value).exists() or "/" in value):
        return [override]
    if key == "model":
        return ["model=local", f"model.source={_quoted(value)}"]
    kind = source_from_name(value).kind
    return ["data=local", f"data.sources.local.path={_quoted(value)}", f"data.sources.local.kind={kind}"]


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _checked(overrides: list[str]) -> list[str]:
    """Return the overrides as Hydra takes them; keys are checked here, where the nearest match is known."""
    known = _known_keys()
    checked = []
    for override in overrides:
        key, equals, _ = override.partition("=")
        key = key.lstrip("+")
        if override.startswith("~"):
            checked.append(override)
            continue
        if not equals or not key:
            raise InputError(f"{override!r}: an override is key=value, or group=name with {', '.join(GROUPS)}")
        if key in GROUPS:
            checked.append(f"{key}={override.partition('=')[2]}")
            continue
        if not _matches(key, known):
            raise unknown_name("recipe key", key, _choices(key, known))
        checked.append(f"++{key}={override.partition('=')[2]}")
    return checked


def _known_keys() -> set[str]:
    known = {"objectives", *(key for key in schema_keys(Recipe) if not key.startswith("objectives"))}
    for name, kind in OBJECTIVES.items():
        known |= {
            "objectives",
            f"objectives.{name}",
            *(f"objectives.{name}.{key}" for key in (*_TERM_KEYS, *schema_keys(kind))),
        }
        known |= {f"objectives.{name}.balance.{key}" for key in schema_keys(Balance)}
    return known


def _choices(key: str, known: set[str]) -> list[str]:
    """The keys at the deepest place that exists on the way to ``key``, and whatever is spelled alike."""
    place = key.rpartition(".")[0]
    while place and not _matches(place, known):
        place = place.rpartition(".")[0]
    depth = place.count(".") + 1 if place else 0
    beside = [k for k in known if k.count(".") == depth and (not depth or _matches(place, {k.rpartition(".")[0]}))]
    return sorted({*beside, *difflib.get_close_matches(key, known, n=1)})


def _matches(key: str, known: set[str]) -> bool:
    if key in known:
        return True
    parts = key.split(".")
    wild = (".".join([*parts[:i], "*", *parts[i + 1 :]]) for i in range(len(parts)))
    return any(candidate in known for candidate in wild)


def _hydra(overrides: list[str]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    names = {group: [file.name for file in list_recipes() if file.group == group] for group in GROUPS}
    for override in overrides:
        key, _, value = override.partition("=")
        if key in names and value not in names[key]:
            raise unknown_name(f"{key} recipe", value, names[key])
    if not any(override.startswith("training=") for override in overrides):
        raise InputError(f"training: no recipe given; use training=NAME (allowed: {', '.join(names['training'])})")
    try:
        with initialize_config_dir(str(recipes_directory()), version_base="1.3"):
            composed = OmegaConf.to_container(hydra_compose("config", overrides), resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"recipe: {str(error).splitlines()[0]}") from error
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}
