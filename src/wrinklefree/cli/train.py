"""`wf train`: a recipe, with overrides, from the command line to `train.stage.train`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.cli.output import Output, progress
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.train.position import Position
    from wrinklefree.train.recipe import Recipe
    from wrinklefree.train.stage import StageResult

INTERRUPTED = 130


def run(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="training=NAME model=NAME|PATH data=NAME|PATH key.path=value"),
    ] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="name the recipes, one line each")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what would run and what it takes, then stop")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="output directory; default: runs/STAGE-IDENTITY")] = None,
    json: Annotated[
        Path | None, typer.Option(help="write the result as JSON to this file (- is standard output)")
    ] = None,
) -> None:
    """The same command again resumes an interrupted run."""
    output = Output(json)
    from wrinklefree.train import compose

    if list_recipes:
        recipes = compose.list_recipes()
        output.table("recipes", ("recipe", "what it is"), [(f"{r.group}={r.name}", r.summary) for r in recipes])
        output.finish({"recipes": [{"group": r.group, "name": r.name, "summary": r.summary} for r in recipes]})
        return
    if not overrides:
        raise InputError("train: name a recipe, such as training=stage2_pretrain model=DIRECTORY (see wf train --list)")
    recipe = compose.compose(overrides)
    if dry_run:
        _show_plan(recipe, output)
    else:
        _train(recipe, out, output)


def _show_plan(recipe: Recipe, output: Output) -> None:
    from wrinklefree.train.compose import to_yaml
    from wrinklefree.train.plan import dry_run

    plan = dry_run(recipe)
    output.line(to_yaml(recipe).rstrip())
    for line in plan.lines():
        output.line(line)
    output.finish(
        {
            "recipe": plan.resolved,
            "parameters": plan.parameters,
            "tokens_per_step": plan.step_tokens,
            "steps": plan.steps,
            "total_tokens": plan.total_tokens,
            "memory_gib": plan.memory_gib,
        }
    )


def _train(recipe: Recipe, out: Path | None, output: Output) -> None:
    from wrinklefree.train.stage import train

    # Further processes of the same run, here or on other machines, have the same command line; one speaks for all.
    first = all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "GROUP_RANK", "NODE_RANK"))
    with progress(recipe.stage) if first else nullcontext(_silent) as show:

        def on_step(position: Position, figures: Mapping[str, float]) -> None:
            show(position.progress(recipe.run_budget), _describe(position, figures))

        done = train(recipe, out=out, on_step=on_step)
    if first:
        _report(done, output)
    if not done.finished:
        raise typer.Exit(INTERRUPTED)


def _report(done: StageResult, output: Output) -> None:
    position = done.result.position
    output.line(f"{'finished' if done.finished else 'interrupted'} after step {position.step}: {done.out}")
    result: dict[str, Any] = {
        "out": str(done.out),
        "finished": done.finished,
        "step": position.step,
        "tokens": position.tokens,
        "seconds": position.seconds,
        "figures": dict(done.result.figures),
    }
    output.finish(result)


def _silent(share: float, what: str) -> None:
    pass


def _describe(position: Position, figures: Mapping[str, float]) -> str:
    speed = position.tokens / position.seconds if position.seconds else 0.0
    loss = f"loss {figures['loss']:.4f}, " if "loss" in figures else ""
    return f"step {position.step}, {loss}{position.tokens:,} tokens, {speed:,.0f} tokens/s"
