"""What the words of ``--tasks`` mean: presets, tasks of ours, of the harness, of a YAML file or directory.

Everything that can be wrong with them is found here, before a model is loaded.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from wrinklefree.errors import InputError, MissingDependencyError, unknown_name
from wrinklefree.eval.tasks import hub
from wrinklefree.eval.tasks.own import OWN
from wrinklefree.eval.tasks.presets import FOLDERS, PRESETS
from wrinklefree.eval.tasks.summaries import summaries as summaries_of

_SUFFIXES = (".yaml", ".yml")
_CODE = re.compile(r"!function|^\s*class\s*:", re.MULTILINE)
_NAME = re.compile(r"^(?:task|group|tag): *[\"']?([\w.\-/]+)[\"']? *$", re.MULTILINE)
_LISTED = re.compile(r"^tag: *(?:\[(.*)\] *$|\n((?: *- *.+\n?)+))", re.MULTILINE)


@dataclass
class Loaded:
    """``tasks`` as the harness takes them (lm_eval.tasks.manager.TaskDict); ``presets``: name -> its tasks' names."""

    tasks: dict[str, Any] = field(default_factory=lambda: {"tasks": {}, "groups": {}, "group_map": {}})
    presets: dict[str, list[str]] = field(default_factory=dict)

    def add(self, found: Mapping[str, Any]) -> list[str]:
        """Take up what the harness's manager loaded; return the tasks' names."""
        for part, content in self.tasks.items():
            content.update(found.get(part, {}))
        return list(found["tasks"])


def load_tasks(words: Sequence[str], allow_code: bool = False, summaries: Path | None = None) -> Loaded:
    """Return the tasks that words name, their data loaded.

    ``summaries``: a JSONL file with articles and their summaries, one task more (see `eval.tasks.summaries`).
    ``allow_code``: whether Python files that come with a task of the user's may run.

    Raises: InputError for an unknown name, a file that is no task, or data that are not on this machine and cannot be
    had; all that lack data are named at once, and none is loaded before.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its remarks on its own defaults
    if not words and summaries is None:
        raise InputError("--tasks: found no task; name some, or a preset such as avg-5")
    plans = {word: _plan(word, allow_code) for word in dict.fromkeys(words)}
    if summaries is not None:
        plans[str(summaries)] = [summaries_of(summaries)]
    manager = _manager({name for plan in plans.values() for name in plan if isinstance(name, str)})
    wanted = {data for plan in plans.values() for spec in plan for data in _needed(manager, spec)}
    alone = hub.check(sorted(wanted, key=str))
    loaded = Loaded()
    with hub.asking_nobody(alone):
        for word, plan in plans.items():
            names = [name for spec in plan for name in loaded.add(_load(manager, word, spec))]
            if word in PRESETS:
                loaded.presets[word] = names
    return loaded


def _plan(word: str, allow_code: bool) -> list[str | dict[str, Any]]:
    """Return what the harness is to load for a word: names of its own, or whole configurations."""
    if word in PRESETS:
        return [_own(name) or name for name in PRESETS[word].tasks]
    if own := _own(word):
        return [own]
    path = Path(word)
    if path.suffix in _SUFFIXES or path.is_dir():
        return list(_from_files(path, allow_code))
    if word not in FOLDERS and word not in _names():
        raise unknown_name("task", word, [*PRESETS, *OWN, *FOLDERS]) from None
    return [word]


def _own(name: str) -> dict[str, Any] | None:
    return OWN[name]() if name in OWN else None


def _from_files(path: Path, allow_code: bool) -> Iterator[dict[str, Any]]:
    if not path.exists():
        raise InputError(f"--tasks {path}: no such file or directory")
    files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES) if path.is_dir() else [path]
    found = [config for file in files if (config := _read(file, allow_code, required=not path.is_dir()))]
    if not found:
        raise InputError(f"--tasks {path}: found no task in it; a YAML file with a line 'task: NAME' is one")
    yield from found


def _read(file: Path, allow_code: bool, required: bool) -> dict[str, Any] | None:
    """Return the configuration in a YAML file, None for one that names no task (others include it)."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not allow_code and (culprit := _with_code(file, set())):
        raise InputError(
            f"--tasks {file}: {culprit} lets Python files run; read them, then allow it with --allow-task-code"
        )
    try:
        config: dict[str, Any] = load_yaml(file)
    except Exception as error:  # of YAML, of files, of the functions named in it
        raise _refused(file, error) from error
    if isinstance(config.get("task"), str) or "group" in config:
        return _beside(config, file.parent)
    if required:
        raise InputError(f"--tasks {file}: found no 'task: NAME' or 'group: NAME' in it")
    return None


def _with_code(file: Path, seen: set[Path]) -> Path | None:
    """Return the first of a YAML file and those it includes that names Python code."""
    if file in seen:
        return None
    seen.add(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(file, error) from error
    if _CODE.search(text):
        return file
    included = re.findall(r"^include: *[\"']?([^\"'\n]+?)[\"']? *$|^ *- *([\w./-]+\.ya?ml) *$", text, re.MULTILINE)
    others = (file.parent / (one or other) for one, other in included)
    return next((found for other in others if other.exists() and (found := _with_code(other, seen))), None)


def _beside(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Let the names of data files count from the YAML file's folder, not from where the command runs."""
    kwargs = config.get("dataset_kwargs")
    if config.get("dataset_path") in hub.FILE_READERS and isinstance(kwargs, dict) and "data_files" in kwargs:
        config["dataset_kwargs"] = {**kwargs, "data_files": _from_folder(kwargs["data_files"], folder)}
    return config


def _from_folder(files: Any, folder: Path) -> Any:
    if isinstance(files, str):
        return files if "://" in files else str(folder.resolve() / files)
    if isinstance(files, Mapping):
        return {split: _from_folder(value, folder) for split, value in files.items()}
    return [_from_folder(value, folder) for value in files] if isinstance(files, list) else files


def _manager(names: Iterable[str]) -> Any:
    """Return the harness's manager over the folders that hold the names, and those that their groups name."""
    from lm_eval.tasks import TaskManager

    folders = {folder for name in names for folder in ([FOLDERS[name]] if name in FOLDERS else _names()[name])}
    while True:
        manager = TaskManager(include_defaults=False, include_path=[str(_root() / each) for each in sorted(folders)])
        lacking = {name for entry in manager.task_index.values() for name in _members(entry.cfg)}
        lacking = {name for name in lacking if manager._entry(name) is None and name in _names()}
        more = {folder for name in lacking for folder in _names()[name]} - folders
        if not more:
            return _with_whole_tags(manager)
        folders |= more


def _with_whole_tags(manager: Any) -> Any:
    """Give tags all their tasks: of several folders the harness keeps the last one's."""
    index = manager.task_index
    for name, entry in index.items():
        for tag in entry.tags if entry.cfg is not None else ():
            if tag in index and index[tag].cfg is None:
                index[tag].tags.add(name)
    return manager


def _members(config: Mapping[str, Any] | None) -> Iterator[str]:
    members = (config or {}).get("task") if "group" in (config or {}) else None
    for member in members if isinstance(members, list) else []:
        if isinstance(member, str):
            yield member
        elif isinstance(member, Mapping):
            yield from [str(member["task"])] if isinstance(member.get("task"), str) else _members(member)


def _root() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


@cache
def _names() -> dict[str, list[str]]:
    """Return name -> folders, from the files' texts: 14,000 files in two seconds, where parsing takes 18."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    root = _root()
    for file in sorted(root.rglob("*.yaml")):
        text = file.read_text(encoding="utf-8", errors="replace")
        folder = file.relative_to(root).parts[0]
        names = _NAME.findall(text)
        for inline, listed in _LISTED.findall(text):
            names += re.findall(r"[\w.\-/]+", inline) + re.findall(r"- *[\"']?([\w.\-/]+)", listed)
        for name in names:
            if folder not in found[name]:
                found[name].append(folder)
    return dict(found)


def _needed(manager: Any, spec: str | Mapping[str, Any]) -> Iterator[hub.Needed]:
    """Yield the data sets on the hub that a name, a tag's or group's tasks, or a configuration needs."""
    if isinstance(spec, str):
        entry = manager._entry(spec)
        if entry is None:
            raise InputError(f"task {spec}: found no such task in lm-evaluation-harness")
        if entry.tags and entry.cfg is None:
            for name in sorted(entry.tags):
                yield from _needed(manager, name)
            return
        spec = entry.cfg or {}
    if "group" in spec:
        for name in _members(spec):
            if manager._entry(name) is not None:
                yield from _needed(manager, name)
    elif (data := hub.needed(spec)) is not None:
        yield data


def _load(manager: Any, word: str, spec: str | dict[str, Any]) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = manager.load([spec])
    except (InputError, MissingDependencyError):
        raise
    except Exception as error:  # a task's own mistakes show in a dozen types; none of them is ours
        raise _refused(word if isinstance(spec, dict) else spec, error) from error
    return found


def _refused(place: str | Path, error: Exception) -> InputError:
    lines = str(error).splitlines()
    return InputError(
        f"--tasks {place}: cannot be read as a task ({type(error).__name__}: {lines[0] if lines else 'no message'})"
    )
