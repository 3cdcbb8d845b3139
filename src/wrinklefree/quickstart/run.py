"""The main job, end to end: a real pretrained model becomes a ternary one that our own engine runs.

    load -> measure teacher and plain rounding -> calibrate -> distil -> export and verify -> measure -> report

Ctrl-C once: what is in hand is finished, exported, measured, and called partial. Twice: stops at once.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wrinklefree.artifact.files import json_bytes, write_bytes
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.data.packing import PackedSequences
from wrinklefree.data.python_docs import HELD_OUT_TOPICS, topics
from wrinklefree.data.split import split
from wrinklefree.data.stream import PackedStream
from wrinklefree.data.tokens import TextEncoder, tokenize
from wrinklefree.engine import Engine, SamplingParams
from wrinklefree.eval.text import EvaluationText, evaluation_documents, evaluation_text
from wrinklefree.export.export import ExportReport, export
from wrinklefree.models.calibration import CalibrationConfig, calibrate
from wrinklefree.models.convert import convert_model
from wrinklefree.models.io import CheckpointInfo, load_checkpoint, load_source, save_checkpoint
from wrinklefree.models.precision import fast_matmul_dtype
from wrinklefree.quant.ternary import TernarySpec
from wrinklefree.quickstart.distill import distill
from wrinklefree.quickstart.journal import Journal
from wrinklefree.quickstart.measure import decode_speeds, directory_bytes, engine_loss, machine, torch_loss
from wrinklefree.quickstart.report import write_report
from wrinklefree.quickstart.settings import Settings
from wrinklefree.quickstart.source import NAME, bundled_model
from wrinklefree.train.interrupt import stop_requested
from wrinklefree.train.memory import keep_freed_memory

PROMPT = "In Python, a list is"
# Of the fixed work, what comes behind the training: export, verification, measuring, reporting.
_AFTER_TRAINING_SHARE = 0.6
Show = Callable[[float, str], None]


@dataclass
class _Job:
    """What the phases share."""

    out: Path
    settings: Settings
    journal: Journal
    show: Show
    deadline: float
    source: Path
    original: Any = None
    tokenizer: Any = None
    text: EvaluationText | None = None
    sequences: PackedSequences | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    partial: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.show(0.0, name)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 2)

    def loss(self, model: nn.Module) -> float:
        assert self.text is not None
        return torch_loss(model, self.text)


def run_quickstart(
    out: Path,
    minutes: float = Settings.minutes,
    threads: int | None = None,
    show: Show = lambda share, what: None,
    *,
    settings: Settings | None = None,
    source: Path | None = None,
) -> dict[str, Any]:
    """Do the job in about ``minutes`` into the directory ``out``; return what stands in ``out/report.json``.

    A second call with the same settings goes on after the last finished phase, or starts clean after a complete run.
    ``settings`` replaces all defaults, ``minutes`` included; ``source`` the bundled model.

    Raises: InputError when ``out`` is not ours or ``minutes`` too few, MissingDependencyError without the model.
    """
    started = time.monotonic()
    keep_freed_memory()
    settings = settings or Settings(minutes=minutes)
    source = source or bundled_model()
    if threads is not None:
        torch.set_num_threads(threads)
    journal, found = Journal.open(out, settings.to_json())
    show(0.0, found)
    job = _Job(out, settings, journal, show, started + 60.0 * settings.minutes, source)
    _load(job)
    losses = _baselines(job)
    student = _calibrated(job)
    losses["after_convert"] = journal.phases.get("calibrate", {}).get("loss") or job.loss(student)
    student = _distilled(job, student)
    exported = _exported(job)
    report = _measured(job, student, losses, exported)
    with job.phase("report"):
        write_report(out, report, job.original, student, journal.phases)
    report["seconds"]["total"] = round(time.monotonic() - started, 2)
    write_bytes(out / "report.json", json_bytes(report))
    if job.partial is None:
        journal.complete()
    return report


def _load(job: _Job) -> None:
    with job.phase("load"):
        job.original, job.tokenizer = load_source(str(job.source))
        with tempfile.TemporaryDirectory() as directory:
            job.tokenizer.save_pretrained(directory)
            encoder = TextEncoder.of(Tokenizer.load(Path(directory)))
        parts = split(topics(), ids=HELD_OUT_TOPICS)
        length = job.settings.sequence_tokens
        job.sequences = PackedSequences(tokenize(parts.train, encoder), length, encoder.eos_id)
        held_out = evaluation_text(evaluation_documents("python-docs"), encoder.encode, length, name="python-docs")
        job.text = held_out.limited(job.settings.check_tokens)


def _baselines(job: _Job) -> dict[str, float]:
    """The losses of the original and of plain per-tensor rounding."""
    if not job.journal.done("baselines"):
        with job.phase("baselines"):
            naive = copy.deepcopy(job.original)
            convert_model(naive, TernarySpec("tensor"))
            job.journal.finish("baselines", {"teacher": job.loss(job.original), "naive_ternary": job.loss(naive)})
    return dict(job.journal.phases["baselines"])


def _calibrated(job: _Job) -> Any:
    directory = job.out / "calibrated"
    if job.journal.done("calibrate") and (directory / "config.json").is_file():
        return load_checkpoint(directory)[0]
    settings = job.settings
    model = copy.deepcopy(job.original)
    with job.phase("calibrate"), stop_requested() as stop:
        seconds = settings.calibration_share * settings.fitting_seconds
        config = CalibrationConfig(epochs=settings.calibration_epochs, max_seconds=seconds, seed=settings.seed)
        report = calibrate(
            model,
            _calibration_sequences(job),
            settings.spec,
            config,
            on_layer=lambda layer, of: job.show((layer.layer + 1) / of, f"calibrate: layer {layer.layer + 1} of {of}"),
            stopped=stop.is_set,
        )
        if stop.is_set():
            trained = sum(layer.training_steps > 0 for layer in report.layers)
            job.partial = (
                f"calibration was stopped: {trained} of {len(report.layers)} layers were trained, the rest rounded"
            )
    with job.phase("loss after convert"):
        figures = {"loss": job.loss(model), **asdict(report)}
    save_checkpoint(model, job.tokenizer, directory, _info(settings, "calibrated"), replace_existing=True)
    if job.partial is None:
        job.journal.finish("calibrate", figures)
    else:
        job.journal.phases["calibrate"] = figures  # for the report only: the next run calibrates again
    return model


def _calibration_sequences(job: _Job) -> Tensor:
    """Sequences drawn over the whole training text; the last one is padded and left out."""
    assert job.sequences is not None
    order = np.random.default_rng(job.settings.seed).permutation(len(job.sequences) - 1)
    count = job.settings.calibration_sequences
    if fast_matmul_dtype()[0] == torch.float32:
        count = max(1, count // 2)  # without bfloat16 a layer's forwards alone would use up its time
    return job.sequences.batch(order[:count]).input_ids


def _distilled(job: _Job, student: Any) -> Any:
    directory = job.out / "student"
    if job.partial:
        save_checkpoint(student, job.tokenizer, directory, _info(job.settings, "calibrated"), replace_existing=True)
        return student
    if job.journal.done("distill") and (directory / "config.json").is_file():
        return load_checkpoint(directory)[0]
    assert job.sequences is not None
    with job.phase("distill"):
        # What is really left decides, so that a fast calibration gives its time to distillation.
        left = job.deadline - time.monotonic() - _AFTER_TRAINING_SHARE * job.settings.fixed_seconds
        stream = PackedStream([job.sequences], job.settings.seed)
        result = distill(
            student, job.original, stream, job.settings, max(5.0, left),
            lambda share, what: job.show(share, f"distil: {what}"),
        )  # fmt: skip
    lines = "".join(json_bytes(entry).decode().replace("\n", "") + "\n" for entry in result.curve)
    write_bytes(job.out / "metrics.jsonl", lines.encode())
    info = _info(job.settings, "distilled", result.tokens)
    save_checkpoint(student, job.tokenizer, directory, info, replace_existing=True)
    if result.finished:
        job.journal.finish("distill", asdict(result))
    else:
        job.partial = f"distillation was stopped after {result.steps} steps"
        job.journal.phases["distill"] = asdict(result)
    return student


def _info(settings: Settings, stage: str, tokens: int = 0) -> CheckpointInfo:
    return CheckpointInfo(stage, settings.spec, calibration="python-docs", teacher=NAME, tokens_seen=tokens)


def _exported(job: _Job) -> ExportReport:
    directory = job.out / "packed"
    with job.phase("export and verify"):
        shutil.rmtree(directory, ignore_errors=True)
        return export(job.out / "student", directory, greedy_tokens=job.settings.greedy_tokens)


def _measured(job: _Job, student: Any, losses: dict[str, float], exported: ExportReport) -> dict[str, Any]:
    assert job.text is not None and exported.agreement is not None
    packed = job.out / "packed"
    with job.phase("final loss"):
        losses["final"] = job.loss(student)
    engine = Engine.load(packed)
    with job.phase("engine loss"):
        by_engine = engine_loss(engine, job.text)
    with job.phase("speed"):
        speed = decode_speeds(engine, job.original, engine.threads)
    with job.phase("answer"):
        answer = _answer(engine)
    order = ("teacher", "naive_ternary", "after_convert", "final")
    loss = {name: losses[name] for name in order}
    perplexity = {name: float(np.exp(min(value, 700.0))) for name, value in loss.items()}
    text = job.text
    return {
        "teacher": {"name": NAME, "parameters": exported.num_parameters, "text": text.name},
        "held_out": {"tokens": text.num_scored, "window": text.window, "documents": list(HELD_OUT_TOPICS)},
        "loss": loss,
        "perplexity": {**perplexity, "engine": float(np.exp(by_engine))},
        "agreement_engine_vs_torch": exported.agreement.to_json(),
        "bytes": {
            "source": directory_bytes(job.source),
            "packed": (packed / "model.safetensors").stat().st_size,
            "packed_directory": directory_bytes(packed),
        },
        "bits_per_ternary_weight": exported.bits_per_ternary_weight,
        "decode_tok_s": speed,
        "answer": {"prompt": PROMPT, "text": answer},
        "seconds": job.seconds,
        "machine": machine(engine),
        "settings": job.settings.to_json(),
        "partial": job.partial,
    }


def _answer(engine: Engine) -> str:
    """Let the finished model go on with a text of the kind it was fitted on; chatting was not."""
    params = SamplingParams(max_tokens=64, temperature=0.0, repetition_penalty=1.15)
    return "".join(step.text for step in engine.generate(engine.tokenizer.encode(PROMPT), params)).strip()
