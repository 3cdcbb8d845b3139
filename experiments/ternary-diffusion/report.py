"""The figures of a run as a table (report.md) and a picture (report.png).

python report.py WORK
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KINDS = ("chat", "docs")
NAMES = {
    "teacher": "the original",
    "calibrated": "ternary, calibrated",
    "ar": "ternary, distilled",
    "dlm": "ternary, block diffusion",
    "drafts": "ternary, drafting in its own text",
    "fp": "full precision, block diffusion",
}
_SMOOTHED = 16  # steps of the curves' moving average


def main() -> None:
    work = Path(sys.argv[1])
    found = {name: work / "figures" / f"{name}.json" for name in NAMES}
    figures = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    lines = [*losses(figures), "", *drafts(figures), "", *taxes(figures)]
    (work / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    curves = {name: curve(work / name / "metrics.jsonl") for name in ("dlm", "drafts", "fp")}
    picture({name: points for name, points in curves.items() if points}, figures, work / "report.png")


def losses(figures: dict[str, Any]) -> list[str]:
    """Return the table of next-token losses and diffusion bounds."""
    lines = ["| model | " + " | ".join(f"{kind}: loss, top 1, diffusion bound" for kind in KINDS) + " |"]
    lines.append("|" + " --- |" * (len(KINDS) + 1))
    for name, found in figures.items():
        cells = []
        for kind in KINDS:
            text = found["text"][kind]
            limit = f"{text['bound']['loss']:.3f} ± {text['bound']['standard_error']:.3f}" if "bound" in text else "-"
            cells.append(f"{text['loss']:.3f}, {100 * text['top1']:.1f} %, {limit}")
        lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + " |")
    return lines


def drafts(figures: dict[str, Any]) -> list[str]:
    """Return the table of acceptance by depth."""
    depths = max((len(found["text"]["chat"].get("draft", [])) for found in figures.values()), default=0)
    lines = ["| accepted drafts, % | " + " | ".join(f"depth {depth + 1}" for depth in range(depths)) + " |"]
    lines.append("|" + " --- |" * (depths + 1))
    for name, found in figures.items():
        rows = {kind: found["text"][kind].get("draft", []) for kind in KINDS}
        rows["its own greedy answers, given all before"] = found.get("greedy", {}).get("conditional", [])
        for what, shares in rows.items():
            if shares:
                lines.append(f"| {NAMES[name]}: {what} | " + " | ".join(f"{100 * x:.1f}" for x in shares) + " |")
    return lines


def taxes(figures: dict[str, Any]) -> list[str]:
    """Return what ternary weights cost in nats a token, autoregressively and in diffusion."""
    lines = []
    for kind in KINDS:
        text = {name: found["text"][kind] for name, found in figures.items()}
        if {"teacher", "ar"} <= text.keys():
            lines.append(f"- {kind}: AR ternary tax {text['ar']['loss'] - text['teacher']['loss']:+.3f} nats")
        if {"dlm", "fp"} <= text.keys():
            own, full = text["dlm"], text["fp"]
            lines.append(f"- {kind}: AR ternary tax after diffusion training {own['loss'] - full['loss']:+.3f} nats, "
                         f"diffusion ternary tax {own['bound']['loss'] - full['bound']['loss']:+.3f} nats")  # fmt: skip
    return lines


def curve(metrics: Path) -> list[tuple[float, float]]:
    """Return (tokens, greedy acceptance at the masks as drawn) of the logged steps, in means of a few."""
    if not metrics.is_file():
        return []
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    size = max(1, min(_SMOOTHED, len(rows) // 40))
    groups = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
    return [(group[-1]["tokens"], sum(row["drafts/top1_agreement"] for row in group) / size) for group in groups]


def picture(curves: dict[str, list[tuple[float, float]]], figures: dict[str, Any], path: Path) -> None:
    """Draw the acceptance over training, and at the end by depth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, points in curves.items():
        left.plot([x / 1000 for x, _ in points], [100 * y for _, y in points], label=NAMES[name])
    left.set(xlabel="thousand tokens of diffusion training", ylabel="drafts accepted, %")
    for name, found in figures.items():
        for kind, style in zip(KINDS, ("-o", "--s"), strict=True):
            shares = found["text"][kind].get("draft", [])
            if shares:
                right.plot(range(1, len(shares) + 1), [100 * x for x in shares], style, label=f"{NAMES[name]}, {kind}")
    right.set(xlabel="depth of the draft", ylabel="drafts accepted on held-out text, %", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
