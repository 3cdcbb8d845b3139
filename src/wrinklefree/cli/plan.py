"""`wf plan`: what a recipe takes on GPUs, before anything is launched."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wrinklefree.cli.output import Output
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.train.plan import GpuPlan


def run(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="training=NAME model=NAME|PATH data=NAME|PATH key.path=value"),
    ] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="a GPU, or several; default: all that are known")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="dollars an hour for one GPU, instead of ours")] = None,
    dollars: Annotated[float | None, typer.Option(min=0, help="a cap: what it pays for on each GPU")] = None,
    utilisation: Annotated[float, typer.Option(help="share of a GPU's peak that training reaches; assumed")] = 0.3,
    json: Annotated[Path | None, typer.Option(help="write the plan as JSON (- is standard output)")] = None,
) -> None:
    """Only the model's configuration is read. Hours and money follow from an assumed utilisation."""
    output = Output(json)
    if not overrides:
        raise InputError("plan: name a recipe, such as training=stage2_pretrain model=DIRECTORY (see wf train --list)")
    from wrinklefree.train import plan as planning
    from wrinklefree.train.compose import compose
    from wrinklefree.train.gpus import GPUS, PRICES_AS_OF, gpu_named

    gpus = [gpu_named(name) for name in gpu] if gpu else list(GPUS.values())
    if price is not None:
        gpus = [replace(each, dollars_per_hour=price, seller="yours") for each in gpus]
    found = planning.plan(compose(overrides), gpus, utilisation, dollars)
    for line in found.run.lines():
        output.line(line)
    output.line(f"operations      {found.flops_per_token / 1e9:.3g} GFLOP for a token")
    output.line(f"disk (GiB)      {_sum(found.disk)}")
    output.line(f"host (GiB)      {_sum(found.host)}, on a machine with GPUs, besides the texts of the data")
    columns = ["GPU", "micro-batch x accumulation", "memory of GiB", "tokens/s", "hours", "$ an hour", "$"]
    if dollars is not None:
        columns.append(f"tokens for ${dollars:,.0f}")
    output.table("on GPUs", columns, [_row(each, dollars) for each in found.gpus])
    if dollars is not None:
        output.line(_within(found.gpus, dollars))
    output.line(
        f"Speeds assume {utilisation:.0%} of a GPU's peak. Prices: {'yours' if price is not None else PRICES_AS_OF}."
    )
    output.finish(
        {
            "recipe": found.run.resolved,
            "parameters": found.run.parameters,
            "tokens_per_step": found.run.step_tokens,
            "steps": found.run.steps,
            "total_tokens": found.run.total_tokens,
            "memory_bytes_on_cpu": found.memory,
            "disk_bytes": found.disk,
            "host_bytes": found.host,
            "flops_per_token": found.flops_per_token,
            "utilisation": utilisation,
            "prices": "given" if price is not None else PRICES_AS_OF,
            "dollars_cap": dollars,
            "gpus": [asdict(each) for each in found.gpus],
        }
    )


def _row(plan: GpuPlan, cap: float | None) -> tuple[str, ...]:
    fits = f"{plan.micro_batch} x {plan.accumulation}" if plan.micro_batch else "does not fit"
    price = plan.gpu.dollars_per_hour
    row = (
        plan.gpu.name,
        fits,
        f"{plan.memory_gib:.1f} of {plan.gpu.memory_gib:.0f}",
        f"{plan.tokens_per_second:,.0f}",
        "-" if plan.seconds is None else f"{plan.seconds / 3600:,.1f}",
        "-" if price is None else f"{price:.2f}",
        "-" if plan.dollars is None or not plan.micro_batch else f"{plan.dollars:,.0f}",
    )
    if cap is None:
        return row
    bought = plan.tokens_for_cap if plan.micro_batch else None
    return (*row, "-" if bought is None else f"{bought / 1e6:,.0f}M")


def _within(plans: tuple[GpuPlan, ...], cap: float) -> str:
    """Which GPUs finish the run within the cap."""
    names = [plan.gpu.name for plan in plans if plan.micro_batch and plan.dollars is not None and plan.dollars <= cap]
    return f"Within ${cap:,.0f}: {', '.join(names)}." if names else f"No GPU with a price finishes within ${cap:,.0f}."


def _sum(parts: dict[str, float]) -> str:
    named = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items() if size)
    return f"{sum(parts.values()) / 2**30:.2f}: {named}"
