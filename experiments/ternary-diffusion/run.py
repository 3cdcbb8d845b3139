"""SmolLM2-135M-Instruct to ternary to block diffusion, stage by stage; the same command goes on where it stopped.

python run.py WORK --model MODEL --documentation DIR_OR_JSONL --scale cpu|gpu|smoke [--minutes M] [--stages a,b]

Stages: documentation, chats, corpus, calibrated, ar, dlm, fp, own, drafts, packed, figures, report. A stage that is
finished is not run again. After ``--minutes`` the stage in progress is asked to stop; it saves its state, and exit code
75 says that there is more to do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "shared")]

import corpus  # noqa: E402
import pieces  # noqa: E402
import prompts  # noqa: E402
from documentation import write_documents  # noqa: E402
from settings import SCALES, Scale  # noqa: E402
from stages import Commands, chosen, go  # noqa: E402

Sources = dict[str, tuple[Path, float]]  # name -> JSON lines, share of the sequences
OWN_TEXTS = {"own-greedy": "0", "own-sampled": "0.8"}  # name -> temperature


@dataclass(frozen=True)
class Run(Commands):
    """What this experiment needs beside where and when."""

    model: str
    documentation: Path | None
    scale: Scale


def documentation(run: Run) -> None:
    out = run.work / "documentation.jsonl"
    if run.documentation is None:
        raise SystemExit("--documentation: needed once; a directory of unpacked packages, or a .jsonl file")
    if run.documentation.is_dir():
        write_documents(run.documentation, out)
    else:
        shutil.copy(run.documentation, out)


def chats(run: Run) -> None:
    """The original answers prompts. A chats.jsonl that is there already is taken as it is."""
    out, scale = run.work / "chats.jsonl", run.scale
    if out.exists():
        return
    run.wf(
        "corpus", run.model, out, "--prompts", _prompts(run), "--chat", "--tokens", f"{scale.chat_tokens}",
        "--max-tokens", f"{scale.chat_length}", "--temperature", "0.9", "--top-p", "0.95", "--seed", f"{scale.seed}",
        "--together", f"{scale.together}", "--dtype", "bfloat16",
    )  # fmt: skip


def _prompts(run: Run) -> Path:
    asked = run.work / "prompts.txt"
    if not asked.exists():
        asked.write_text("\n".join(prompts.prompts(3000, run.scale.seed)) + "\n", encoding="utf-8")
    return asked


def texts(run: Run) -> None:
    scale, out = run.scale, run.work / "corpus"
    sizes = corpus.build(
        run.work / "chats.jsonl", run.work / "documentation.jsonl", out, scale.held_chats, scale.held_docs,
        scale.docs_characters, scale.seed,
    )  # fmt: skip
    corpus.mixed(out, out / "calibration.jsonl", scale.seed)
    (out / "characters.json").write_text(json.dumps(sizes) + "\n", encoding="utf-8")


def calibrated(run: Run) -> None:
    tokens = f"{run.scale.calibration_tokens}"
    if (run.work / "calibrated").exists():  # it appears whole or not at all
        return
    text = run.work / "corpus" / "calibration.jsonl"
    report = run.work / "calibrated.json"
    run.wf(
        "convert", run.model, run.work / "calibrated", "--calibration", text, "--tokens", tokens, "--no-check",
        "--json", report,
    )  # fmt: skip


def ar(run: Run) -> None:
    scale = run.scale
    sources = _corpus(run, 0.6)
    train(run, "ar", "quick_distill", run.work / "calibrated", sources, (scale.ar_step, scale.ar_micro_batch), [
        f"budget.total_tokens={scale.ar_tokens}", "budget.max_seconds=null", f"optimizer.lr={scale.rate}",
        "schedule.warmup_ratio=0.12", "schedule.decay_ratio=0.4",
    ])  # fmt: skip


def dlm(run: Run) -> None:
    scale = run.scale
    tokens = f"budget.total_tokens={scale.dlm_tokens}"
    diffusion(
        run, "dlm", run.work / "ar", _corpus(run, 0.7), (scale.dlm_step, scale.dlm_micro_batch), scale.rate, [tokens]
    )


def fp(run: Run) -> None:
    """The same tokens and noise at strength 0 of the quantisation, from the original's weights."""
    scale = run.scale
    diffusion(run, "fp", run.model, _corpus(run, 0.7), (scale.dlm_step, scale.dlm_micro_batch), scale.full_rate, [
        f"budget.total_tokens={scale.dlm_tokens}", "strength.end=0", "model.subln=none",
    ])  # fmt: skip


def own(run: Run) -> None:
    """What the ternary model writes itself, greedily and sampled, by the engine: the text that it will draft in."""
    scale, packed_model = run.scale, run.work / "dlm-packed"
    if not packed_model.exists():
        run.wf("export", run.work / "dlm", packed_model)
    for name, temperature in OWN_TEXTS.items():
        out = run.work / "corpus" / f"{name}.jsonl"
        if not out.exists():
            run.wf(
                "corpus", packed_model, out, "--prompts", _prompts(run), "--chat", "--tokens",
                f"{scale.own_tokens // 2}", "--max-tokens", f"{scale.chat_length}", "--temperature", temperature,
                "--top-p", "0.95", "--seed", f"{scale.seed + 1}", "--together", "16",
            )  # fmt: skip


def drafts(run: Run) -> None:
    """More of the same on half its own text: what it drafts is judged by itself, on what it writes."""
    scale = run.scale
    sources = {name: (run.work / "corpus" / f"{name}.jsonl", 0.25) for name in OWN_TEXTS}
    sources |= {kind: (path, 0.5 * weight) for kind, (path, weight) in _corpus(run, 0.6).items()}
    diffusion(run, "drafts", run.work / "dlm", sources, (scale.drafts_step, scale.drafts_micro_batch), scale.rate, [
        f"budget.total_tokens={scale.drafts_tokens}", "objectives.drafts.weight=2.0",
    ])  # fmt: skip


def diffusion(
    run: Run, name: str, model: str | Path, sources: Sources, step: tuple[int, int], rate: float, more: list[str]
) -> None:
    scale = run.scale
    train(run, name, "causal_diffusion", model, sources, step, [
        f"optimizer.lr={rate}", f"diffusion.block_size={scale.block}",
        f"diffusion.min_ratio={scale.min_ratio}", "schedule.warmup_ratio=0.06", "schedule.decay_ratio=0.3",
        "log.log_every=16", *more,
    ])  # fmt: skip


def _corpus(run: Run, chat: float) -> Sources:
    """``chat`` parts of the original's chats, the rest documentation."""
    weights = zip(corpus.KINDS, (chat, 1.0 - chat), strict=True)
    return {kind: (run.work / "corpus" / f"train-{kind}.jsonl", weight) for kind, weight in weights}


def train(
    run: Run, name: str, recipe: str, model: str | Path, sources: Sources, step: tuple[int, int], more: list[str]
) -> None:
    """Train on ``sources``; resumes from the state in the same directory. ``step``: its sequences, and in a forward."""
    scale, (sequences, micro) = run.scale, step
    data: list[str] = []
    for kind, (path, weight) in sources.items():
        data += [f"+data.sources.{kind}.kind=jsonl", f"+data.sources.{kind}.path={path}"]
        data += [f"+data.sources.{kind}.weight={weight:.2f}"]
    run.wf(
        "train", f"training={recipe}", f"model={model}", f"out={run.work / name}", *data, "~data.sources.python-docs",
        "data.held_out_share=0", f"data.sequence_length={scale.sequence}", f"batch.micro_batch={micro}",
        f"batch.accumulation={sequences // micro}", f"device.accelerator={scale.accelerator}",
        "device.precision=bf16-mixed", "teacher.dtype=bfloat16", "optimizer.weight_decay=0", "optimizer.scale_lr=0.3",
        "optimizer.norm_lr=3.0", f"checkpoint.save_every={scale.save_every}", "checkpoint.keep_last=1",
        "log.ternary_every=0", "log.tracker=none", f"seed={scale.seed}", *more,
    )  # fmt: skip


def packed(run: Run) -> None:
    """Export, which reads back and compares; and pieces of it that a transfer takes."""
    out, parts = run.work / "packed", run.work / "returned"
    shutil.rmtree(out, ignore_errors=True)
    run.wf("export", run.work / "drafts", out, "--json", run.work / "packed.json")
    for file in sorted(path for path in out.iterdir() if path.is_file()):
        pieces.split(file, parts)


def figures(run: Run) -> None:
    out, scale = run.work / "figures", run.scale
    out.mkdir(exist_ok=True)
    models: dict[str, str | Path] = {
        "teacher": run.model,
        **{name: run.work / name for name in ("calibrated", "ar", "dlm", "drafts", "fp")},
    }
    for name, model in models.items():
        if not (out / f"{name}.json").exists():
            run.command(
                sys.executable, HERE / "measure.py", model, run.work / "corpus", out / f"{name}.json", "--strength",
                "0" if name == "fp" else "1", "--tokens", f"{scale.measured_tokens}", "--greedy",
                f"{scale.greedy_tokens}", "--device", scale.accelerator,
            )  # fmt: skip


def report(run: Run) -> None:
    run.command(sys.executable, HERE / "report.py", run.work)


RUN: dict[str, Callable[[Run], None]] = {
    "documentation": documentation, "chats": chats, "corpus": texts, "calibrated": calibrated, "ar": ar, "dlm": dlm,
    "fp": fp, "own": own, "drafts": drafts, "packed": packed, "figures": figures, "report": report,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", required=True, help="the original: a GGUF file, a directory or a Hugging Face id")
    parser.add_argument("--documentation", type=Path)
    parser.add_argument("--scale", choices=tuple(SCALES), default="cpu")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--stages", default=",".join(RUN))
    a = parser.parse_args()
    names = chosen(RUN, a.stages)
    deadline = time.monotonic() + 60.0 * a.minutes
    return go(Run(a.work.resolve(), deadline, a.model, a.documentation, SCALES[a.scale]), RUN, names)


if __name__ == "__main__":
    sys.exit(main())
