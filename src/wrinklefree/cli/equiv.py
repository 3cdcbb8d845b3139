"""`wf equiv`: whether two models, or two ways of computing one, are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wrinklefree.cli.output import Output
from wrinklefree.errors import InputError

_DIFFERENT = 1


def run(
    model_a: Annotated[str, typer.Argument(metavar="MODEL_A", help="a checkpoint, a Hugging Face id or directory")],
    model_b: Annotated[
        str | None, typer.Argument(metavar="[MODEL_B]", help="default: MODEL_A, in another mode")
    ] = None,
    mode_a: Annotated[str, typer.Option(help="plain, sdpa, eager, compile, checkpointing, bfloat16, int8")] = "plain",
    mode_b: Annotated[str, typer.Option(help="how MODEL_B is computed")] = "plain",
    text: Annotated[str, typer.Option(metavar="FILE|NAME", help="a file, a directory, or python-docs")] = "python-docs",
    window: Annotated[int, typer.Option(min=2, help="tokens of a window")] = 256,
    tokens: Annotated[int, typer.Option(min=1, help="compare on about so many, spread over the text")] = 1024,
    gradients: Annotated[bool, typer.Option("--gradients", help="compare the gradients of the loss too")] = False,
    steps: Annotated[int, typer.Option(min=0, help="train both for so many steps, and compare again")] = 0,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate in these steps")] = 1e-4,
    min_cosine: Annotated[float, typer.Option(help="below this, something is not the same")] = 0.9999,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: torch's choice")] = None,
    json: Annotated[Path | None, typer.Option(help="write the figures as JSON (- is standard output)")] = None,
) -> None:
    """Exits with 1 when the least alike logits or gradients have a cosine below --min-cosine."""
    output = Output(json)
    if not -1.0 <= min_cosine <= 1.0:
        raise InputError(f"--min-cosine {min_cosine}: a cosine is from -1 to 1")
    if (model_b is None or model_b == model_a) and mode_a == mode_b:
        raise InputError("equiv: the same model in the same mode; name a second model, or a --mode-b")
    import torch

    from wrinklefree.eval import equivalence

    if threads is not None:
        torch.set_num_threads(threads)
    a, encode = equivalence.load_model(model_a)
    b, encode_b = equivalence.load_model(model_b or model_a)
    equivalence.set_mode(a, mode_a)
    equivalence.set_mode(b, mode_b)
    batches = equivalence.text_batches(text, encode, window, tokens)
    _check_tokens(text, window, tokens, batches, encode_b)
    found: dict[str, Any] = {"model_a": model_a, "model_b": model_b or model_a, "mode_a": mode_a, "mode_b": mode_b}
    logits = equivalence.compare_logits(a, b, batches)
    cosines = {"logits": logits.cosine}
    output.line(
        f"logits     cosine {logits.cosine:.8f} (least alike of {logits.positions:,} positions; mean "
        f"{logits.mean_cosine:.8f}), largest difference {logits.max_abs:.3g}, same first token {logits.top1:.2%}"
    )
    found["logits"] = equivalence.to_json(logits)
    if gradients:
        slopes = equivalence.compare_gradients(a, b, batches)
        cosines["gradients"] = slopes.cosine
        alone = f"; in one model only: {', '.join(slopes.only_one[:3])}" if slopes.only_one else ""
        output.line(
            f"gradients  cosine {slopes.cosine:.8f} (least alike: {slopes.parameter}), relative difference at most "
            f"{slopes.max_relative:.3g}, losses {slopes.losses[0]:.6f} and {slopes.losses[1]:.6f}{alone}"
        )
        found["gradients"] = equivalence.to_json(slopes)
    if steps:
        from wrinklefree.optim.build import OptimizerConfig

        trained = equivalence.run_n_steps_and_compare(a, b, batches, steps, OptimizerConfig(lr=lr))
        cosines["logits after training"] = trained.logits.cosine
        output.line(
            f"{steps} steps  losses differ by {trained.max_loss_difference:.3g} at most, the ways the parameters went "
            f"have a cosine of {trained.way:.6f}, logits after them {trained.logits.cosine:.8f}"
        )
        found["training"] = equivalence.to_json(trained)
    below = [f"{name} {cosine:.8f}" for name, cosine in cosines.items() if not cosine >= min_cosine]
    output.line(f"DIFFERENT: {', '.join(below)} below {min_cosine}" if below else f"the same: {min_cosine} or above")
    output.finish({**found, "min_cosine": min_cosine, "same": not below})
    if below:
        raise typer.Exit(_DIFFERENT)


def _check_tokens(text: str, window: int, tokens: int, batches: Any, encode: Any) -> None:
    """Raise InputError when the second model's tokenizer gives other ids."""
    import torch

    from wrinklefree.eval.equivalence import text_batches

    others = text_batches(text, encode, window, tokens)
    same = len(others) == len(batches) and all(
        torch.equal(x.input_ids, y.input_ids) for x, y in zip(batches, others, strict=True)
    )
    if not same:
        raise InputError("equiv: the two tokenizers split the text differently, so that no logits correspond")
