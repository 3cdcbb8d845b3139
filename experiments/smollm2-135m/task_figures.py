"""Tasks that need no hub, and which of the usual averages could not be had."""

from __future__ import annotations

from typing import Any

from wrinklefree.errors import InputError, MissingDependencyError
from wrinklefree.eval.scorer import Scorer
from wrinklefree.eval.tasks.presets import PRESETS

LOCAL = ("exact_choice", "movie_reviews")
AVERAGES = ("avg-5", "avg-8")


def loadable(words: tuple[str, ...] = (*LOCAL, *AVERAGES)) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the tasks that can run here, and of the others what ``tasks`` they stand for and ``why`` they cannot."""
    had: list[str] = []
    missing: dict[str, dict[str, Any]] = {}
    for word in words:
        try:
            from wrinklefree.eval.tasks.catalog import load_tasks

            load_tasks([word])
            had.append(word)
            continue
        except InputError:
            why = "its data could not be had on that machine"
        except (MissingDependencyError, ImportError):
            why = "a package that it needs was not installed there"
        missing[word] = {"tasks": list(PRESETS[word].tasks) if word in PRESETS else [word], "why": why}
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
