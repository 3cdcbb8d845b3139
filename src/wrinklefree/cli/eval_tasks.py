"""The part of `wf eval` that puts tasks to a model: what its options mean, before the model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wrinklefree.eval.result import Part
    from wrinklefree.eval.scorer import Scorer


@dataclass(frozen=True)
class TaskWords:
    """The options as they were typed. ``tasks``: names, presets, YAML files and directories, with commas between."""

    tasks: str | None
    summaries: Path | None
    limit: int | None
    shots: int | None
    chat_template: bool
    system: str | None
    allow_task_code: bool

    @property
    def asked(self) -> bool:
        return self.tasks is not None or self.summaries is not None

    def settings(self) -> dict[str, Any]:
        """Return what belongs into a result's settings."""
        if not self.asked:
            return {}
        return {
            "tasks": self.tasks,
            "summaries": None if self.summaries is None else str(self.summaries),
            "limit": self.limit,
            "shots": self.shots,
            "chat_template": self.chat_template,
            "system": self.system,
            "allow_task_code": self.allow_task_code,
        }


def task_measure(words: TaskWords) -> Callable[[Scorer, Callable[[float, str], None]], Part]:
    """Return what runs the tasks on a model; their data are loaded now, so that what is missing is said now.

    Raises: InputError for an unknown task, one whose data are not here, or a file that cannot be read.
    """
    from wrinklefree.eval.tasks.catalog import load_tasks
    from wrinklefree.eval.tasks.run import TaskOptions, run_tasks

    names = [name.strip() for name in (words.tasks or "").split(",") if name.strip()]
    loaded = load_tasks(names, words.allow_task_code, words.summaries)
    options = TaskOptions(
        limit=words.limit,
        shots=words.shots,
        chat=words.chat_template,
        system=words.system,
        allow_code=words.allow_task_code,
    )
    return lambda scorer, show: run_tasks(scorer, loaded, options, lambda done, of, what: show(done / of, what))
