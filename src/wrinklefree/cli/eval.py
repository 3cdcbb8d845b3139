"""`wf eval`: how good a model is, however it runs, as a document with everything that is needed to repeat it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.cli.eval_labelled import Fields, Labelled, LabelledName, evaluate_labelled, refuse_beside
from wrinklefree.cli.eval_tasks import TaskWords, task_measure
from wrinklefree.cli.output import Output, progress
from wrinklefree.errors import InputError, unknown_name

if TYPE_CHECKING:
    from wrinklefree.eval.result import Part, Result
    from wrinklefree.eval.scorer import Scorer


Show = Callable[[float, str], None]
Measure = Callable[["Scorer", Show], "Part"]  # made before the model is loaded, so that what is wrong shows at once
LIKELIHOODS = ("ar", "block")
PYTHON_DOCS = "python-docs"


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="a packed model, a checkpoint, a Hugging Face id or directory, a .gguf file, or a server: "
            "http://HOST:PORT[/v1][#NAME]",
        ),
    ],
    perplexity: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help=f"text to score: a file, a directory, or {PYTHON_DOCS} (offline; the default where nothing is asked)",
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="tasks of lm-evaluation-harness, sets such as avg-5, or FILE.yaml of yours"),
    ] = None,
    summaries: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="articles to sum up, with summaries to compare with")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="of --tasks: examples before each question")] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="of --tasks: questions as messages of a conversation")
    ] = False,
    system: Annotated[str | None, typer.Option(help="of --chat-template: the system message")] = None,
    allow_task_code: Annotated[
        bool, typer.Option("--allow-task-code", help="of --tasks: run Python that a task brings or a model wrote")
    ] = False,
    teacher: Annotated[str | None, typer.Option(help="a second model with the same tokenizer to compare with")] = None,
    window: Annotated[int, typer.Option(help="tokens of a window")] = 512,
    stride: Annotated[int | None, typer.Option(help="tokens between windows; default: the window")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="about so many tokens of the text; documents of each task")
    ] = None,
    likelihood: Annotated[
        str, typer.Option(help="ar (each token from those before it) or block (a diffusion model's bound, by masks)")
    ] = "ar",
    samples: Annotated[int, typer.Option(min=2, help="masks of each block, for --likelihood block")] = 8,
    seed: Annotated[int, typer.Option(help="of the masks")] = 0,
    labelled: LabelledName = None,
    field: Fields = None,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: physical cores")] = None,
    json: Annotated[Path | None, typer.Option(help="write the result as JSON (- is standard output)")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the result as Markdown")] = None,
) -> None:
    """A packed model or ternary file runs on the engine, an http address is asked, everything else runs on torch."""
    output = Output(json)
    if markdown is not None and not markdown.absolute().parent.is_dir():
        raise InputError(f"--markdown {markdown}: the directory {markdown.parent} does not exist")
    if labelled is not None:
        refuse_beside({"--perplexity": perplexity, "--tasks": tasks, "--summaries": summaries, "--stride": stride})
        options = Labelled(labelled, field or (), window, limit, teacher, threads)
        _finish(output, evaluate_labelled(model, options), markdown)
        return
    if field:
        raise InputError("--field: only --labelled reads it")
    if likelihood not in LIKELIHOODS:
        raise unknown_name("--likelihood", likelihood, LIKELIHOODS)
    asked = TaskWords(tasks, summaries, limit, shots, chat_template, system, allow_task_code)
    measures: list[Measure] = [task_measure(asked)] if asked.asked else []
    settings: dict[str, Any] = {**asked.settings(), "threads": threads}
    if perplexity is not None or teacher is not None or likelihood == "block" or not measures:
        text = perplexity or PYTHON_DOCS
        if measures and limit is not None:
            raise InputError("--limit: counts tokens of a text and documents of tasks; run the two one after the other")
        settings |= {"perplexity": text, "teacher": teacher, "window": window, "stride": stride, "limit": limit}
        settings |= {"likelihood": likelihood, "samples": samples, "seed": seed}
        if likelihood == "block":
            measures.append(_by_masks(text, window, limit, samples, seed, alone=teacher is None and stride is None))
        else:
            measures.append(_text(text, window, stride, limit, teacher, threads, output))
    _measure(model, threads, measures, settings, output, markdown)


def _measure(
    model: str,
    threads: int | None,
    measures: list[Measure],
    settings: dict[str, Any],
    output: Output,
    markdown: Path | None,
) -> None:
    from wrinklefree.eval.opening import open_scorer
    from wrinklefree.eval.result import Result

    with progress("eval") as show, open_scorer(model, threads, output.line) as scorer:
        result = Result.of(scorer, settings, [measure(scorer, show) for measure in measures])
    _finish(output, result, markdown)


def _finish(output: Output, result: Result, path: Path | None) -> None:
    """Say what was found, and write its document as JSON and Markdown where that was asked."""
    from wrinklefree.artifact.files import write_bytes
    from wrinklefree.eval.result import markdown

    for part in result.parts:
        for line in part.lines():
            output.line(line)
    document = result.to_json()
    if path is not None:
        write_bytes(path, markdown(document).encode())
    output.finish(document)


def _windows(show: Show) -> Callable[[int, int], None]:
    return lambda done, of: show(done / of, f"window {done} of {of}")


def _text(
    text: str,
    window: int,
    stride: int | None,
    limit: int | None,
    teacher: str | None,
    threads: int | None,
    output: Output,
) -> Measure:
    from wrinklefree.eval.perplexity import TextOptions, score_text
    from wrinklefree.eval.text import evaluation_documents

    documents = evaluation_documents(text)
    options = TextOptions(text, window, stride, limit)

    def measure(scorer: Scorer, show: Show) -> Part:
        if teacher is None:
            return score_text(scorer, documents, options, None, _windows(show))
        from wrinklefree.eval.opening import open_scorer

        with open_scorer(teacher, threads, output.line) as other:
            return score_text(scorer, documents, options, other, _windows(show))

    return measure


def _by_masks(text: str, window: int, limit: int | None, samples: int, seed: int, alone: bool) -> Measure:
    if not alone:
        raise InputError("--likelihood block: --teacher and --stride go with --likelihood ar; leave them out")
    from wrinklefree.eval.likelihood import score_by_masks
    from wrinklefree.eval.perplexity import TextOptions
    from wrinklefree.eval.text import evaluation_documents

    documents = evaluation_documents(text)
    options = TextOptions(text, window, None, limit)
    return lambda scorer, show: score_by_masks(scorer, documents, options, samples, seed, _windows(show))
