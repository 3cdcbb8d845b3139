"""How near `wf plan`'s memory is to what training takes: real runs of a few steps, each in a process of its own.

    python benchmarks/plan_memory.py CHECKPOINT [--text FILE] [--steps 2] [--json FILE] [--only NAME ...]

For each configuration: the plan's estimate, the largest resident size the kernel saw (VmHWM), and their ratio. The
text is made up here unless one is given, because memory does not depend on what is read. On a CPU; the process that
imports everything and trains nothing is measured as well, for the plan's constant.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Name -> overrides. Steps are few: the state of the optimizer is there after the first, the high point in the second.
CONFIGURATIONS: dict[str, list[str]] = {
    "muon 2x256": ["training=stage2_pretrain", "batch.micro_batch=2", "data.sequence_length=256"],
    "taught 4x256": ["training=quick_distill", "batch.micro_batch=4", "data.sequence_length=256"],
    "muonclip 1x512 x2": [
        "training=stage2_pretrain", "optimizer=muonclip", "batch.micro_batch=1", "batch.accumulation=2",
        "data.sequence_length=512",
    ],
    "apollo 1x256": ["training=stage2_pretrain", "optimizer=apollo", "batch.micro_batch=1", "data.sequence_length=256"],
    "adamw_8bit 8x256": [
        "training=stage2_pretrain", "optimizer=adamw_8bit", "batch.micro_batch=8", "data.sequence_length=256",
    ],
}  # fmt: skip
_COMMON = [
    "budget.total_tokens=null", "budget.max_seconds=null", "log.tracker=none", "device.accelerator=cpu",
    "log.ternary_every=0",
]  # fmt: skip

# Run in the process that is measured: argv is overrides, out directory; the last line is JSON.
_CHILD = """
import json, sys
from pathlib import Path
from wrinklefree.train.compose import compose
from wrinklefree.train.plan import plan
from wrinklefree.train.stage import train

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

*overrides, out = sys.argv[1:]
recipe = compose(overrides)
runtime = peak()
seconds = []
train(recipe, out=Path(out), on_step=lambda position, figures: seconds.append(position.seconds))
parts = plan(recipe).memory
print(json.dumps({"runtime": runtime, "measured": peak(), "estimated": sum(parts.values()), "parts": parts,
                  "seconds": seconds}))
"""


def measure(name: str, model: str, text: str, steps: int, directory: Path) -> dict[str, Any]:
    """Run one configuration and return its figures, in bytes."""
    overrides = [*CONFIGURATIONS[name], *_COMMON, f"model={model}", f"data={text}", f"budget.max_steps={steps}"]
    if not any(override.startswith("batch.accumulation") for override in overrides):
        overrides.append("batch.accumulation=1")
    command = [sys.executable, "-c", _CHILD, *overrides, str(directory / name.replace(" ", "-"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"name": name, **found, "ratio": found["estimated"] / found["measured"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a converted checkpoint (wf convert)")
    parser.add_argument("--text", help="a text file; default: made up")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        text = given.text
        if text is None:
            made = Path(scratch) / "texts"
            made.mkdir()
            for number in range(12):
                (made / f"{number}.txt").write_text("".join(f"Line {i} of text {number}.\n" for i in range(900)))
            text = str(made)
        print(f"{'configuration':22} {'plan GiB':>9} {'measured':>9} {'ratio':>6}   s/step")
        for name in given.only:
            row = measure(name, given.model, text, given.steps, Path(scratch))
            rows.append(row)
            pace = row["seconds"][-1] / len(row["seconds"])
            sizes = f"{row['estimated'] / 2**30:9.2f} {row['measured'] / 2**30:9.2f} {row['ratio']:6.2f}"
            print(f"{name:22} {sizes}   {pace:.1f}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
