"""BitDistill on sentences of film reviews: a fine-tuned teacher, BitNet-SFT, and the pipeline, at the same tokens.

python run.py WORK --model MODEL --ternary CHECKPOINT [--steps N] [--seeds 0,1] [--arms a,b] [--held-out validation]

``MODEL``: the original. ``CHECKPOINT``: the same model made ternary and distilled on text (`wf train
training=quick_distill` or stage2_pretrain). A finished arm is not run again; one that was stopped goes on from its
state. WORK/results/ARM-sSEED.json is written when an arm ends; report.py makes the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from wrinklefree.artifact.files import write_bytes
from wrinklefree.artifact.provenance import provenance

_WF = [sys.executable, "-c", "import sys; sys.argv[0] = 'wf'; from wrinklefree.cli.main import main; sys.exit(main())"]
SEQUENCE, ROWS = 40, 16  # tokens of a row, rows of a step
TEACHER = "fp"


@dataclass(frozen=True)
class Arm:
    """``start``: the original ("model") or the ternary checkpoint ("ternary"). ``rate``: peak, unless --rate is given.

    ``settings``: what differs from the recipe. ``taught``: learns from the teacher.
    """

    recipe: str
    start: str
    rate: float
    settings: tuple[str, ...] = ()
    taught: bool = False


ARMS = {
    TEACHER: Arm("teacher_finetune", "model", 5e-5),
    "bitnet-sft": Arm("classification", "model", 1e-4, ("model.subln=none",)),
    "labels-from-ternary": Arm("classification", "ternary", 1e-4),
    "pipeline": Arm("bitdistill", "ternary", 1e-4, taught=True),
    # The checkpoint is ternary already, so its strength need not rise again.
    "pipeline-full-strength": Arm("bitdistill", "ternary", 1e-4, ("strength.kind=constant",), taught=True),
}


def main() -> None:
    a = _arguments()
    work = a.work.resolve()
    (work / "results").mkdir(parents=True, exist_ok=True)
    names = [TEACHER, *(name for name in a.arms.split(",") if name != TEACHER)]
    if unknown := set(names) - set(ARMS):
        sys.exit(f"--arms {', '.join(sorted(unknown))}: unknown; allowed are {', '.join(ARMS)}")
    teacher = work / f"{TEACHER}-s{a.seeds.split(',')[0]}"
    for seed in map(int, a.seeds.split(",")):
        for name in names:
            _run(work, name, seed, a, teacher)


def _run(work: Path, name: str, seed: int, a: argparse.Namespace, teacher: Path) -> None:
    out, result = work / f"{name}-s{seed}", work / "results" / f"{name}-s{seed}.json"
    if result.exists():
        return
    arm = ARMS[name]
    rate = arm.rate if a.rate is None else a.rate
    words = [
        f"training={arm.recipe}", f"model={a.model if arm.start == 'model' else a.ternary}", f"out={out}",
        "data=movie-reviews", f"task.held_out_split={a.held_out}", f"data.sequence_length={SEQUENCE}",
        f"batch.micro_batch={ROWS}", "batch.accumulation=1", f"budget.max_steps={a.steps}", f"optimizer.lr={rate}",
        "device.precision=bf16-mixed", "log.tracker=none", "log.ternary_every=0", "log.log_every=4",
        "checkpoint.save_every=32", "checkpoint.keep_last=1", f"seed={seed}", *arm.settings,
    ]  # fmt: skip
    if arm.taught:
        words += [f"model.teacher={teacher}", "teacher.dtype=bfloat16"]
    subprocess.run([*_WF, "train", *words], check=True)
    found = json.loads((out / "held_out.json").read_text(encoding="utf-8"))
    document = {
        "arm": name, "seed": seed, "steps": a.steps, "positions": a.steps * SEQUENCE * ROWS, "rate": rate,
        "held_out_split": a.held_out, **found, "words": words, "provenance": provenance(),
    }  # fmt: skip
    write_bytes(result, (json.dumps(document, indent=2) + "\n").encode())
    shutil.rmtree(out / "state", ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--ternary", required=True)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--rate", type=float, help="peak rate of all arms, to probe: give another WORK")
    parser.add_argument("--held-out", choices=("validation", "test"), default="test")
    return parser.parse_args()


if __name__ == "__main__":
    main()
