"""The runs of this directory as one table and one picture.

python benchmarks/recovery/report.py [RESULTS [PICTURE.png]]

Losses are nats per token on held-out documents. A comparison is the mean over seeds of the difference between two arms
with the same seed (the same sequences in the same order), and each difference on its own: with two or three seeds there
is no honest error bar.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMPARISONS = (
    ("quantisation rises over the first third", "naive-lambda", "naive"),
    ("Stage 1.9 in the first third", "naive-stage1.9", "naive"),
    ("calibrated start", "calibrated", "naive"),
    ("Muon instead of AdamW", "naive-muon", "naive"),
    ("APOLLO instead of AdamW", "naive-apollo", "naive"),
)


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results"
    runs = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    for line in [*table(runs), "", *compared(runs)]:
        print(line)
    if len(sys.argv) > 2:
        picture(runs, Path(sys.argv[2]))


def final(run: dict[str, Any]) -> float:
    """Return the loss after the last step."""
    return float(run["losses"][str(run["steps"])])


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table with a row for each run."""
    steps = [step for step in runs[0]["losses"] if step != "teacher"]
    lines = ["| arm | peak rate | seed | " + " | ".join(f"step {step}" for step in steps) + " | seconds |"]
    lines.append("|" + " --- |" * (len(steps) + 4))
    for run in sorted(runs, key=lambda run: (run["arm"], run["optimizer"]["lr"], run["seed"])):
        losses = " | ".join(f"{run['losses'][step]:.3f}" for step in steps)
        lines.append(f"| {run['arm']} | {run['optimizer']['lr']:g} | {run['seed']} | {losses} | {run['seconds']:.0f} |")
    return lines


def compared(runs: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table with a row for each comparison; only runs at their arm's own rate are paired."""
    own: dict[tuple[str, int], float] = {}
    for run in runs:
        own.setdefault((run["arm"], run["seed"]), final(run))
    lines = ["| what changes | difference for each seed | mean |", "| --- | --- | --- |"]
    for what, changed, base in COMPARISONS:
        seeds = sorted(seed for arm, seed in own if arm == changed and (base, seed) in own)
        differences = [own[changed, seed] - own[base, seed] for seed in seeds]
        if differences:
            each = ", ".join(f"{difference:+.3f}" for difference in differences)
            lines.append(f"| {what} | {each} | {statistics.mean(differences):+.3f} |")
    return lines


def picture(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw the held-out loss over the steps of every run; arms by colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    arms = sorted({run["arm"] for run in runs})
    colours = dict(zip(arms, pyplot.get_cmap("tab10").colors, strict=False))
    for run in runs:
        points = [(int(step), loss) for step, loss in run["losses"].items() if step != "teacher"]
        label = run["arm"] if run["seed"] == min(r["seed"] for r in runs if r["arm"] == run["arm"]) else None
        axes.plot(*zip(*points, strict=True), color=colours[run["arm"]], marker=".", label=label, alpha=0.8)
    axes.axhline(runs[0]["losses"]["teacher"], color="black", linestyle=":", label="original model")
    axes.set(xlabel="step", ylabel="loss on held-out documents (nats per token)", ylim=(2, 12))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
