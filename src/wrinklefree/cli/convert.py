"""`wf convert`: a pretrained model becomes a ternary checkpoint, fitted on a little text, and says what it lost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.cli.output import Output, progress
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from wrinklefree.eval.text import EvaluationText
    from wrinklefree.models.calibration import CalibrationConfig, CalibrationReport
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
    tokens: Annotated[int, typer.Option(min=SEQUENCE_TOKENS, help="tokens of the text to fit on")] = 12_288,
    scale: Annotated[str, typer.Option(help="one scale for each tensor, row or group")] = "group",
    group_size: Annotated[int, typer.Option(help="columns for each scale of --scale group: 64, 128 or 256")] = 64,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="bound on the time to fit")] = None,
    epochs: Annotated[float, typer.Option(min=0.0, help="times each layer is trained on the text")] = 3.0,
    batch: Annotated[int, typer.Option(min=1, help=f"sequences of {SEQUENCE_TOKENS} tokens a step of a layer")] = 4,
    rate: Annotated[float, typer.Option(help="peak learning rate of a layer")] = 1e-3,
    gram: Annotated[int, typer.Option(min=1, help="sequences behind the second-order rounding")] = 32,
    state: Annotated[
        Path | None, typer.Option(help="keep finished layers here; the same command goes on after an interruption")
    ] = None,
    seed: Annotated[int, typer.Option(help="order of the text")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: torch's choice")] = None,
    check: Annotated[bool, typer.Option(help="measure the loss before and after on held-out text")] = True,
    json: Annotated[Path | None, typer.Option(help="write the report as JSON (- is standard output)")] = None,
) -> None:
    """OUT is what wf train and wf export read. Plain rounding (--calibration none) ruins a model until trained."""
    output = Output(json)
    if out.exists():
        raise InputError(f"{out}: exists already; choose another output directory or remove this one")
    from wrinklefree.models.calibration.config import CalibrationConfig
    from wrinklefree.quant.ternary import TernarySpec

    spec = TernarySpec(scale, group_size)  # type: ignore[arg-type]
    fit = CalibrationConfig(
        epochs=epochs, batch_sequences=batch, learning_rate=rate, gram_sequences=gram, seed=seed,
        max_seconds=None if minutes is None else 60 * minutes,
    )  # fmt: skip
    with progress("convert") as show:
        report = convert(
            source, out, spec, subln, calibration, tokens, fit, threads=threads, check=check, show=show, state=state
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
    tokens: int = 12_288,
    fit: CalibrationConfig | None = None,
    *,
    threads: int | None = None,
    check: bool = True,
    state: Path | None = None,
    show: Callable[[float, str], None] = lambda share, what: None,
) -> dict[str, Any]:
    """Write the ternary checkpoint of ``source`` to ``out`` and return the report as JSON values.

    Raises: InputError for a wrong source, text, option or output.
    """
    import torch

    from wrinklefree.models.calibration import CalibrationConfig, calibrate
    from wrinklefree.models.convert import check_convertible, convert_model
    from wrinklefree.models.gguf import refuse_ternary
    from wrinklefree.models.io import CheckpointInfo, load_source, save_checkpoint
    from wrinklefree.models.pooling import refuse_classifier

    start = time.perf_counter()
    fit = fit or CalibrationConfig()
    if threads is not None:
        torch.set_num_threads(threads)
    show(0.0, f"loading {source}")
    refuse_ternary(source)
    model, tokenizer = load_source(source)
    refuse_classifier(model, source, "wf train training=classification converts and trains it")
    check_convertible(model, subln)
    plain = calibration == NO_CALIBRATION
    text = None
    if not plain or check or subln == "identity":
        text = _text(tokenizer, "python-docs" if plain else calibration, tokens, fit.seed)
    sequences = text.sequences if text else None
    before = _loss(model, text) if check else None
    fitted: CalibrationReport | None = None
    if plain:
        convert_model(model, spec, subln, sequences)  # type: ignore[arg-type]
    else:
        fitted = calibrate(
            model,
            sequences,  # type: ignore[arg-type]
            spec,
            fit,
            subln,  # type: ignore[arg-type]
            lambda layer, of: show((layer.layer + 1) / of, f"layer {layer.layer + 1} of {of}"),
            state=state,
        )
    after = _loss(model, text) if check else None
    info = CheckpointInfo(
        stage="convert", spec=spec, subln=subln, calibration=None if plain else calibration, teacher=source
    )
    save_checkpoint(model, tokenizer, out, info)
    return {
        "source": source,
        "out": str(out),
        **asdict(spec),
        "subln": subln,
        "calibration": None if fitted is None else {"text": calibration, **asdict(fit), **asdict(fitted)},
        "loss": {"before": before, "after": after},
        "seconds": time.perf_counter() - start,
    }


@dataclass(frozen=True)
class _Text:
    """Token ids [N, T] to fit on, and windows kept back for the self-check (None: the text is too short)."""

    sequences: Tensor
    kept_back: EvaluationText | None


def _text(tokenizer: Any, name: str, tokens: int, seed: int) -> _Text:
    """Read and shuffle a text; python-docs keeps back its held-out topics, any other text its last sequences."""
    import numpy as np

    from wrinklefree.artifact.tokenizer import Tokenizer
    from wrinklefree.data.build import split_source
    from wrinklefree.data.packing import PackedSequences
    from wrinklefree.data.sources import read_documents, source_from_name
    from wrinklefree.data.tokens import TextEncoder, tokenize
    from wrinklefree.eval.text import EvaluationText, Window, evaluation_text

    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        encoder = TextEncoder.of(Tokenizer.load(directory))
    source = source_from_name(name)
    count = max(1, tokens // SEQUENCE_TOKENS)
    kept_back = None
    if source.path is None:
        parts = split_source(source)
        documents = parts.train
        kept_back = evaluation_text(parts.held_out, encoder.encode, SEQUENCE_TOKENS, name=name)
    else:
        documents = tuple(read_documents(source))
    packed = PackedSequences(tokenize(documents, encoder), SEQUENCE_TOKENS, encoder.eos_id)
    # The last sequence is padded; only a text shorter than one sequence has to do with it.
    order = np.random.default_rng(seed).permutation(max(1, packed.documents.num_tokens // SEQUENCE_TOKENS))
    if kept_back is None and len(order) > 1:
        back = max(1, min(CHECK_TOKENS // SEQUENCE_TOKENS, len(order) // 10))
        windows = tuple(Window(packed.row(int(index))[0], 1) for index in order[-back:])
        kept_back = EvaluationText(name, windows, SEQUENCE_TOKENS, SEQUENCE_TOKENS, back * SEQUENCE_TOKENS, 0)
        order = order[:-back]
    return _Text(packed.batch(order[:count]).input_ids, kept_back.limited(CHECK_TOKENS) if kept_back else None)


def _loss(model: Any, text: _Text | None) -> float | None:
    from wrinklefree.eval.loss import held_out_loss, torch_logits

    return held_out_loss(torch_logits(model), text.kept_back).loss if text and text.kept_back else None


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
        lines.append(f"loss on text kept back: {loss['before']:.3f} nats before, {loss['after']:.3f} ternary")
    lines.append(f"wrote {report['out']} in {report['seconds']:.0f} s; next: wf export {report['out']} PACKED")
    return lines
