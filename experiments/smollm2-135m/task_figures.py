"""Tasks that need no hub, and which of the usual averages could not be had."""

from __future__ import annotations

from typing import Any

from wrinklefree.errors import InputError
from wrinklefree.eval.scorer import Scorer
from wrinklefree.eval.tasks.presets import PRESETS

LOCAL = ("exact_choice", "movie_reviews")
AVERAGES = ("avg-5", "avg-8")


def loadable(words: tuple[str, ...] = (*LOCAL, *AVERAGES)) -> tuple[list[str], dict[str, list[str]]]:
    """Return the tasks whose data can be had, and those that cannot, each with the tasks it stands for.

    Raises: MissingDependencyError when the harness itself is not installed.
    """
    from wrinklefree.eval.tasks.catalog import load_tasks

    had, missing = [], {}
    for word in words:
        try:
            load_tasks([word])
            had.append(word)
        except InputError:
            missing[word] = list(PRESETS[word].tasks) if word in PRESETS else [word]
    return had, missing


def scores(scorer: Scorer, words: list[str], limit: int) -> dict[str, Any]:
    """Return the figures of tasks, the first ``limit`` documents of each: results by task and averages."""
    from wrinklefree.eval.tasks.catalog import load_tasks
    from wrinklefree.eval.tasks.run import TaskOptions, run_tasks

    found = run_tasks(scorer, load_tasks(words), TaskOptions(limit=limit)).to_json()["tasks"]
    results = {
        name: {key: each[key] for key in ("metrics", "primary", "documents", "of", "shots", "data")}
        for name, each in found["results"].items()
    }
    return {"results": results, "averages": found["averages"]}
