"""The tables about a recipe's choices, in Markdown: every arm against the one it differs from, seed by seed."""

from __future__ import annotations

import math

from figures import Result, final_loss, first_loss, paired, spread

Runs = dict[str, list[Result]]


def tried_rates(runs: Runs) -> list[str]:
    """Each peak rate that was tried; the best of a kind is marked, and whether it lies at the edge."""
    lines = [
        "| optimizer and start | peak rate | held-out loss | KL to the teacher | same first token "
        "| highest KL in training | seeds |",
        "| --- " * 7 + "|",
    ]
    kinds: dict[str, list[list[Result]]] = {}
    for each in runs.values():
        kinds.setdefault(each[0]["facts"]["of"], []).append(each)
    for kind, rows in kinds.items():
        rows.sort(key=lambda each: each[0]["facts"]["rate"])
        shared = set.intersection(*({run["seed"] for run in each} for each in rows))
        divergence = [_mean([_kl(run) for run in each if run["seed"] in shared]) for each in rows]
        best = divergence.index(min(divergence)) if len(rows) > 1 and shared else None
        for number, each in enumerate(rows):
            edge = ", at the edge" if best in (0, len(rows) - 1) else ""
            note = f" (best{edge})" if number == best else ""
            lines.append(
                f"| {kind} | {each[0]['facts']['rate']:g}{note} | {spread(map(final_loss, each))} "
                f"| {spread(map(_kl, each))} | {_percent(each)} | {spread(map(_worst, each))} | {len(each)} |"
            )
    return lines


def compared(runs: Runs) -> list[str]:
    """What each choice does to loss and divergence against its counterpart, at equal tokens and seeds."""
    lines = [
        "| question | arm | where it starts | held-out loss | difference | lower in | KL to the teacher | difference "
        "| same first token | processor seconds: start, training | seeds |",
        "| --- " * 11 + "|",
    ]
    order = ("", "objective", "start", "strength", "optimizer", "scales", "SubLN", "attention relation")
    for arm, each in sorted(runs.items(), key=lambda pair: order.index(pair[1][0]["facts"].get("question", ""))):
        facts = each[0]["facts"]
        against = runs.get(facts.get("against", ""), []) if facts.get("question") else []
        apart, divergence = paired(each, against), paired(each, against, _kl)
        other = "" if facts.get("against") in (None, _base(runs)) else f" (against: {facts['against']})"
        lines.append(
            f"| {facts.get('question', '')} | {arm}{other} | {spread(map(first_loss, each))} "
            f"| {spread(map(final_loss, each))} | {spread(apart, signed=True)} "
            f"| {f'{sum(x < 0 for x in apart)} of {len(apart)}' if apart else '-'} "
            f"| {spread(map(_kl, each))} | {spread(divergence, signed=True)} | {_percent(each)} "
            f"| {spread([_seconds(run, 'calibration') for run in each], 1)}, "
            f"{spread([_seconds(run, 'distillation') for run in each], 1)} | {len(each)} |"
        )
    return lines


def _base(runs: Runs) -> str | None:
    return next((arm for arm, each in runs.items() if not each[0]["facts"].get("question")), None)


def _kl(run: Result) -> float:
    return float(run["stages"][-1].get("held_out", {}).get("kl", math.nan))


def _worst(run: Result) -> float:
    values = run["stages"][-1]["curve"].get("logits_kd/value")
    return max(values) if values else math.nan


def _percent(each: list[Result]) -> str:
    return spread([100 * run["stages"][-1].get("held_out", {}).get("top1", math.nan) for run in each], 1) + " %"


def _seconds(run: Result, name: str) -> float:
    found = [stage["cpu_seconds"] for stage in run["stages"] if stage["name"] == name]
    return math.nan if None in found else sum(found)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.inf
