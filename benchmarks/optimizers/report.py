"""The runs of this directory as one table (Markdown, on standard output) and one picture.

    python benchmarks/optimizers/report.py [RESULTS [PICTURE.png]]

Held-out loss in nats per byte, mean and standard deviation over seeds. "At equal seconds" is the mean training loss
over the last ten steps that each optimizer has done when the fastest one is through.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TUNING_SEED = 99
_LAST = 10


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results"
    picture = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "optimizers.png"
    runs = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    arms: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["seed"] != TUNING_SEED:
            arms.setdefault(run["optimizer"], []).append(run)
    seconds = min(statistics.mean(run["seconds"][-1] for run in arm) for arm in arms.values())
    print("| optimizer | rate | held out | at equal seconds | s a step | of it optimizer | state, bytes a parameter |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, arm in arms.items():
        print(_row(name, arm, seconds))
    print()
    for name in arms:
        tried = sorted(
            (run["rate"], run["held_out"]) for run in runs if run["optimizer"] == name and run["seed"] == TUNING_SEED
        )
        best = min(tried, key=lambda pair: pair[1], default=None)
        edge = " The best is at the edge; a rate beyond it may be better." if best in (tried[:1] + tried[-1:]) else ""
        print(f"Rates tried for {name}: " + ", ".join(f"{rate:g} {loss:.3f}" for rate, loss in tried) + f".{edge}")
    _draw(arms, picture)


def _row(name: str, arm: list[dict[str, Any]], seconds: float) -> str:
    held = [run["held_out"] for run in arm]
    spread = f" ± {statistics.stdev(held):.3f}" if len(held) > 1 else ""
    within = [_at(run, seconds) for run in arm]
    step = statistics.mean(run["seconds"][-1] / run["steps"] for run in arm)
    own = statistics.mean(run["optimizer_seconds"] / run["steps"] for run in arm)
    state = 4 * arm[0]["state_bytes"] / arm[0]["parameter_bytes"]
    figures = f"{statistics.mean(held):.3f}{spread} | {statistics.mean(within):.3f} | {step:.3f} | {own:.3f}"
    return f"| {name} | {arm[0]['rate']:g} | {figures} | {state:.2f} |"


def _at(run: dict[str, Any], seconds: float) -> float:
    done = sum(each <= seconds for each in run["seconds"])
    return statistics.mean(run["losses"][max(done - _LAST, 0) : done])


def _draw(arms: dict[str, list[dict[str, Any]]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_step, by_second, by_size) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name, arm in arms.items():
        losses = [statistics.mean(step) for step in zip(*(run["losses"] for run in arm), strict=True)]
        smooth = [statistics.mean(losses[max(i - 4, 0) : i + 1]) for i in range(len(losses))]
        seconds = [statistics.mean(step) for step in zip(*(run["seconds"] for run in arm), strict=True)]
        (line,) = by_step.plot(range(1, len(losses) + 1), smooth, label=name)
        by_second.plot(seconds, smooth, color=line.get_color())
        held = [run["held_out"] for run in arm]
        state = 4 * arm[0]["state_bytes"] / arm[0]["parameter_bytes"]
        error = statistics.stdev(held) if len(held) > 1 else 0.0
        by_size.errorbar(state, statistics.mean(held), error, marker="o", capsize=3, color=line.get_color())
        by_size.annotate(name, (state, statistics.mean(held)), xytext=(6, 4), textcoords="offset points", fontsize=8)
    by_step.set(xlabel="step", ylabel="training loss, nats per byte", title="by step (mean of five)")
    by_second.set(xlabel="processor seconds", title="by time")
    by_size.set(xlabel="bytes of state for a float32 parameter", ylabel="held-out loss", title="by memory")
    by_size.set_xlim(left=0.0, right=by_size.get_xlim()[1] * 1.15)
    by_step.legend(fontsize=8)
    for axes in (by_step, by_second, by_size):
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
