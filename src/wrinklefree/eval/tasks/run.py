"""Run tasks on a scorer and give their figures, with everything that is needed to repeat them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from wrinklefree.errors import InputError
from wrinklefree.eval.result import Figure, value_text
from wrinklefree.eval.scorer import Scorer
from wrinklefree.eval.tasks.catalog import Loaded
from wrinklefree.eval.tasks.figures import RESAMPLES, SHARES, Estimate, estimate, mean, primary


@dataclass(frozen=True)
class TaskOptions:
    """How tasks are put to a model.

    ``limit``: the first so many documents of each task. ``shots``: examples before each question, None for each task's
    own number. ``chat``: questions through the model's chat template, behind ``system``; with ``turns`` each example
    is a turn of the conversation. ``seed``: of the choice of examples. ``allow_code``: tasks may run Python of theirs.
    """

    limit: int | None = None
    shots: int | None = None
    chat: bool = False
    system: str | None = None
    turns: bool = True
    seed: int = 1234
    allow_code: bool = False


@dataclass(frozen=True)
class TaskResult:
    """``documents`` were scored, the first of ``of``. ``texts``: of a task that writes, what was written and wanted."""

    task: str
    data: str
    version: Any
    shots: int
    documents: int
    of: int
    output: str
    metrics: dict[str, Estimate]
    texts: list[dict[str, str]] = field(default_factory=list)

    @property
    def primary(self) -> str:
        """The metric that averages take."""
        return primary(self.metrics)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "primary": self.primary,
            "metrics": {name: each.to_json() for name, each in self.metrics.items()},
        }


@dataclass(frozen=True)
class TaskReport:
    """``results``: task -> its figures. ``averages``: of presets (the plain mean) and of the harness's groups.

    ``counts``: requests made, contexts cut on the left, continuations that melted into their context.
    """

    results: dict[str, TaskResult]
    averages: dict[str, dict[str, Any]]
    options: TaskOptions
    counts: dict[str, int]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the key that tasks add to a result's document, see `eval.result.Part`."""
        import lm_eval

        settings = {"harness": f"lm_eval {lm_eval.__version__}", "resamples": RESAMPLES, **asdict(self.options)}
        tasks = {
            "settings": settings,
            "results": {name: result.to_json() for name, result in self.results.items()},
            "averages": self.averages,
            "counts": self.counts,
            "seconds": round(self.seconds, 3),
        }
        return {"tasks": tasks}

    def figures(self) -> list[Figure]:
        """Return every metric of every task, and the averages of presets and groups."""
        found = [
            Figure(f"{name}: {metric}", each.value, each.standard_error, each.higher_is_better, self._settings(result))
            for name, result in self.results.items()
            for metric, each in result.metrics.items()
        ]
        for name, average in self.averages.items():
            own = [self.results[task] for task in average["tasks"]]
            settings = {"tasks": [f"{each.task} {each.shots}-shot {each.documents} of {each.of}" for each in own]}
            settings |= self._asked()
            found += [
                Figure(f"{name}: {kind}", each["value"], each["standard_error"], each["higher_is_better"], settings)
                for kind, each in average["means"].items()
            ]
        return found

    def lines(self) -> list[str]:
        """Return the figures in words, for the terminal."""
        found = []
        for result in self.results.values():
            metrics = (f"{name} {value_text(each.value, each.standard_error)}" for name, each in result.metrics.items())
            found.append(
                f"{result.task}: {', '.join(metrics)} ({result.documents} of {result.of} documents, "
                f"{result.shots} examples)"
            )
        for name, average in self.averages.items():
            means = (f"{kind} {value_text(e['value'], e['standard_error'])}" for kind, e in average["means"].items())
            found.append(f"{name}: {', '.join(means)}")
        if cut := self.counts["contexts_cut"]:
            found.append(
                f"{cut} of {self.counts['requests']} requests were too long; their contexts were cut on the left"
            )
        return found

    def _settings(self, result: TaskResult) -> dict[str, Any]:
        same = {"data": result.data, "version": result.version, "shots": result.shots}
        return {**same, "documents": f"{result.documents} of {result.of}", **self._asked()}

    def _asked(self) -> dict[str, Any]:
        options = self.options
        if not options.chat:
            return {"chat": None}
        return {"chat": f"template, {'turns' if options.turns else 'one turn'}", "system": options.system}


def run_tasks(
    scorer: Scorer, loaded: Loaded, options: TaskOptions | None = None, on_progress: Any = None
) -> TaskReport:
    """Return the figures of loaded tasks (see `catalog.load_tasks`).

    ``on_progress(done, of, what)`` is called while the model works.

    Raises: InputError for options that a task or the model does not go with.
    """
    from lm_eval.evaluator import evaluate

    from wrinklefree.eval.tasks.bridge import ScorerModel

    options = options or TaskOptions()
    _configure(loaded, options)
    begun = time.monotonic()
    model = ScorerModel(scorer, on_progress)
    with _without_bars():
        out: Any = evaluate(
            model,
            loaded.tasks,
            limit=options.limit,
            bootstrap_iters=0,  # it forks processes; `figures` has the errors
            system_instruction=options.system,
            apply_chat_template=options.chat,
            fewshot_as_multiturn=options.turns and options.chat,
            confirm_run_unsafe_code=options.allow_code,
        )
    results = {name: _result(task, out, name) for name, task in loaded.tasks["tasks"].items()}
    presets = {name: [results[task] for task in tasks] for name, tasks in loaded.presets.items()}
    averages = {name: _average(own) for name, own in presets.items() if all(one.primary in SHARES for one in own)}
    averages |= {name: found for name, group in loaded.tasks["groups"].items() if (found := _group(group, results))}
    return TaskReport(results, averages, options, dict(model.counts), time.monotonic() - begun)


@contextmanager
def _without_bars() -> Iterator[None]:
    """While the block runs, the harness draws no bars of its own over ours."""
    import lm_eval.api.task as harness

    drawn = harness.tqdm
    harness.tqdm = lambda steps, **_: steps
    try:
        yield
    finally:
        harness.tqdm = drawn


def _configure(loaded: Loaded, options: TaskOptions) -> None:
    if options.limit is not None and options.limit < 1:
        raise InputError(f"limit: found {options.limit}, at least 1 document of each task is needed")
    if options.system is not None and not options.chat:
        raise InputError("a system message goes with the chat template; add --chat-template")
    for name, task in loaded.tasks["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) and not options.allow_code:
            raise InputError(f"task {name}: runs code that the model wrote; allow it with --allow-task-code")
        own = task.get_config("num_fewshot")
        if options.shots is not None and own != 0:  # 0 is said on purpose, as the harness has it
            task.set_config(key="num_fewshot", value=options.shots)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=options.seed)


def _result(task: Any, out: Mapping[str, Any], name: str) -> TaskResult:
    samples = out["samples"][name]
    config = task.config
    parts = (config.dataset_path, config.dataset_name) if config.custom_dataset is None else ("of this package",)
    split = config.test_split or config.validation_split or config.training_split
    return TaskResult(
        task=name,
        data=" ".join(str(part) for part in (*parts, split) if part),
        version=task.VERSION,
        shots=int(config.num_fewshot or 0),
        documents=len({sample["doc_id"] for sample in samples}),
        of=len(task.eval_docs),
        output=task.OUTPUT_TYPE,
        metrics=_metrics(task, samples),
        texts=_texts(samples) if task.OUTPUT_TYPE == "generate_until" else [],
    )


def _metrics(task: Any, samples: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Return the figures by metric; where answers are read in several ways, by metric and way."""
    ways = list(dict.fromkeys(sample["filter"] for sample in samples))
    found = {}
    for way in ways:
        own = [sample for sample in samples if sample["filter"] == way]
        for metric in dict.fromkeys(metric for sample in own for metric in sample["metrics"]):
            items = [sample[metric] for sample in own if metric in sample]
            aggregate = task.aggregation().get(metric, lambda values: sum(values) / len(values))
            better = bool(task.higher_is_better().get(metric, True))
            found[metric if len(ways) == 1 else f"{metric} ({way})"] = estimate(items, aggregate, better)
    return found


def _texts(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "document": str(sample["doc_id"]),
            "hypothesis": _text(sample["filtered_resps"][0]),
            "reference": str(sample["target"]),
        }
        for sample in samples
    ]


def _text(found: Any) -> str:
    return str(found[0]) if isinstance(found, list | tuple) and found else str(found)


def _average(results: Sequence[TaskResult]) -> dict[str, Any]:
    """Return a preset's plain means: of each task's primary metric and, where all have it, of plain accuracy."""
    metrics = {result.task: result.primary for result in results}
    means = {"mean": mean([result.metrics[metrics[result.task]] for result in results]).to_json()}
    if all("acc" in result.metrics for result in results):
        means["mean of acc"] = mean([result.metrics["acc"] for result in results]).to_json()
    return {"tasks": list(metrics), "metrics": metrics, "means": means}


def _group(group: Any, results: Mapping[str, TaskResult]) -> dict[str, Any] | None:
    """Return the means that one of the harness's groups asks for, each over the tasks that have the metric."""
    own = [results[task.task_name] for task in group.get_all_tasks()]
    means: dict[str, Any] = {}
    for wanted in (group.aggregate_metric_list or []) if group.has_aggregation else []:
        names = dict.fromkeys(name for result in own for name in result.metrics if _is(name, wanted.metric))
        for name in names if str(wanted.aggregation) == "mean" else ():
            having = [result for result in own if name in result.metrics]
            weights = [float(result.documents) for result in having] if wanted.weight_by_size else None
            means[name] = mean([result.metrics[name] for result in having], weights).to_json()
    return {"tasks": [result.task for result in own], "means": means} if means else None


def _is(name: str, metric: str) -> bool:
    return name == metric or name.startswith(f"{metric} (")
