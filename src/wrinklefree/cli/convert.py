"""`wf convert`: a pretrained model becomes a ternary checkpoint, fitted on a little text, and says what it lost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.cli.output import Output, progress
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.data.build import TrainingData
    from wrinklefree.models.calibration import CalibrationReport
    from wrinklefree.quant.ternary import TernarySpec

NO_CALIBRATION = "none"
SEQUENCE_TOKENS = 256
# Held-out tokens that the self-check scores before and after.
CHECK_TOKENS = 1024


def run(
    source: Annotated[str, typer.Argument(metavar="SRC", help="a Hugging Face id, a directory, or a .gguf file")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the checkpoint directory to write; must not exist")],
    subln: Annotated[str, typer.Option(help="norms before o_proj and down_proj: identity, ones or none")] = "none",
    calibration: Annotated[
        str,
        typer.Option(
            metavar="TEXT|none", help="text to fit on: a file, a directory, or python-docs; none rounds plainly"
        ),
    ] = "python-docs",
    tokens: Annotated[int, typer.Option(min=SEQUENCE_TOKENS, help="tokens of the text to fit on")] = 24_576,
    scale: Annotated[str, typer.Option(help="one scale for each tensor, row or group")] = "group",
    group_size: Annotated[int, typer.Option(help="columns for each scale of --scale group: 64, 128 or 256")] = 64,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="bound on the time to fit")] = None,
    seed: Annotated[int, typer.Option(help="order of the text")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: torch's choice")] = None,
    check: Annotated[bool, typer.Option(help="measure the loss before and after on held-out text")] = True,
    json: Annotated[Path | None, typer.Option(help="write the report as JSON (- is standard output)")] = None,
) -> None:
    """OUT is what wf train and wf export read. Plain rounding (--calibration none) ruins a model until it is trained."""
    output = Output(json)
    if out.exists():
        raise InputError(f"{out}: exists already; choose another output directory or remove this one")
    from wrinklefree.quant.ternary import TernarySpec

    spec = TernarySpec(scale, group_size)  # type: ignore[arg-type]
    with progress("convert") as show:
        report = convert(
            source, out, spec, subln, calibration, tokens, minutes, seed, threads=threads, check=check, show=show
        )
    for line in _summary(report):
        output.line(line)
    output.finish(report)


def convert(
    source: str,
    out: Path,
    spec: TernarySpec,
    subln: str = "none",
    calibration: str = "python-docs",
    tokens: int = 24_576,
    minutes: float | None = None,
    seed: int = 0,
    *,
    threads: int | None = None,
    check: bool = True,
    show: Callable[[float, str], None] = lambda share, what: None,
) -> dict[str, Any]:
    """Write the ternary checkpoint of ``source`` to ``out`` and return the report as JSON values.

    Raises: InputError for a wrong source, text, option or output.
    """
    import torch

    from wrinklefree.models.calibration import CalibrationConfig, calibrate
    from wrinklefree.models.convert import check_convertible, convert_model
    from wrinklefree.models.io import CheckpointInfo, load_source, save_checkpoint

    start = time.perf_counter()
    if threads is not None:
        torch.set_num_threads(threads)
    show(0.0, f"loading {source}")
    model, tokenizer = load_source(source)
    check_convertible(model, subln)
    plain = calibration == NO_CALIBRATION
    data = None
    if not plain or check or subln == "identity":
        data = _data(tokenizer, "python-docs" if plain else calibration, seed)
    count = max(1, tokens // SEQUENCE_TOKENS)
    sequences = data.stream.batch(0, count).input_ids if data else None
    before = _loss(model, data) if data and check else None
    fitted: CalibrationReport | None = None
    if plain:
        convert_model(model, spec, subln, sequences)  # type: ignore[arg-type]
    else:
        settings = CalibrationConfig(max_seconds=None if minutes is None else 60 * minutes, seed=seed)
        fitted = calibrate(
            model,
            sequences,  # type: ignore[arg-type]
            spec,
            settings,
            subln,  # type: ignore[arg-type]
            lambda layer, of: show((layer.layer + 1) / of, f"layer {layer.layer + 1} of {of}"),
        )
    after = _loss(model, data) if data and check else None
    info = CheckpointInfo(
        stage="convert", spec=spec, subln=subln, calibration=None if plain else calibration, teacher=source
    )
    save_checkpoint(model, tokenizer, out, info)
    return {
        "source": source,
        "out": str(out),
        **asdict(spec),
        "subln": subln,
        "calibration": None if fitted is None else {"text": calibration, **asdict(fitted)},
        "loss": {"before": before, "after": after},
        "seconds": time.perf_counter() - start,
    }


def _data(tokenizer: Any, text: str, seed: int) -> TrainingData:
    from wrinklefree.artifact.tokenizer import Tokenizer
    from wrinklefree.data.build import DataConfig, build_data
    from wrinklefree.data.sources import source_from_name
    from wrinklefree.data.tokens import TextEncoder

    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        encoder = TextEncoder.of(Tokenizer.load(directory))
    return build_data(DataConfig((source_from_name(text),), SEQUENCE_TOKENS, seed), encoder)


def _loss(model: Any, data: TrainingData) -> float:
    from wrinklefree.eval.loss import held_out_loss, torch_logits
    from wrinklefree.eval.text import from_packed

    return held_out_loss(torch_logits(model), from_packed(data.held_out).limited(CHECK_TOKENS)).loss


def _summary(report: dict[str, Any]) -> list[str]:
    lines = []
    fitted = report["calibration"]
    if fitted is not None:
        errors = [layer["error_trained"] for layer in fitted["layers"]]
        lines.append(
            f"fitted on {fitted['tokens']:,} tokens of {fitted['text']} in {fitted['seconds']:.0f} s; squared error "
            f"of a layer's output relative to it: {min(errors):.4f} to {max(errors):.4f}"
        )
    else:
        lines.append("rounded plainly: train this model before you use it, or convert it with --calibration TEXT")
    loss = report["loss"]
    if loss["after"] is not None:
        lines.append(f"loss on held-out text: {loss['before']:.3f} nats before, {loss['after']:.3f} ternary")
    lines.append(f"wrote {report['out']} in {report['seconds']:.0f} s; next: wf export {report['out']} PACKED")
    return lines
