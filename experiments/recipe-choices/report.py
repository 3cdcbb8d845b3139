"""The results of a scale as tables and pictures.

python report.py [RESULTS]

RESULTS (default: results/cpu here) gets report.md and a picture for each table that has one. Losses are nats per token,
mean ± standard deviation over seeds; a difference is taken between runs of the same seed first.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import pictures  # noqa: E402
from figures import (  # noqa: E402
    Result,
    final_loss,
    first_loss,
    interpolated,
    last_steps,
    median_step,
    paired,
    read,
    spread,
    step_seconds,
)
from report_choices import compared, tried_rates  # noqa: E402

Runs = dict[str, list[Result]]
_WARM = 8  # steps of a speed measurement that are left out


def main() -> None:
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results" / "cpu"
    parts = [about(results)]
    for name, (title, build) in TABLES.items():
        runs = read(results, name)
        if runs:
            parts.append(f"## {title}\n\n" + "\n".join(build(runs)))
    (results / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    pictures.draw(results)
    print("\n\n".join(parts))


def about(results: Path) -> str:
    """Return what stands above the tables: teacher, machine, commits, seeds."""
    teacher = json.loads((results / "teacher.json").read_text())
    every = [run for name in TABLES for runs in read(results, name).values() for run in runs]
    origins = [stage["provenance"] for run in every for stage in run["stages"]]
    commits = sorted({str(origin["commit"])[:12] for origin in origins})
    machine = origins[0]["machine"]
    held = teacher["held_out"]
    lines = [
        f"Teacher: held-out loss {held['loss']:.4f}, perplexity {held['perplexity']:.2f}, "
        f"{held['bits_per_byte']:.4f} bits a byte; {held['tokens']:,} tokens in windows of {held['window']}.",
        f"{len(every)} runs; a row says how many seeds it has. Package at commit {', '.join(commits)}, "
        f"{machine['cpu']}, {machine['cores']} cores, torch {origins[0]['packages'].get('torch')}.",
    ]
    return "\n".join(["# Results", "", *lines])


def lengths(runs: Runs) -> list[str]:
    """Stage 1.9 of each length against the same steps, and the same processor time, spent in Stage 2 alone."""
    every = [run for each in runs.values() for run in each]
    slow, fast = step_seconds(every, "stage 1.9"), step_seconds(every, "stage 2")
    alone = {arm: each for arm, each in runs.items() if each[0]["facts"]["stage1_9"] == 0}
    curves: dict[int, list[tuple[float, float]]] = {}
    for each in alone.values():
        for run in each:
            curves.setdefault(run["seed"], []).append((run["facts"]["stage2"], final_loss(run)))
    lines = [
        f"A step of Stage 1.9 takes {slow / fast:.2f} times the processor time of one of Stage 2 "
        f"({slow:.3f} s and {fast:.3f} s).",
        "",
        "| Stage 1.9 + 2, steps | where Stage 2 starts | held-out loss | perplexity | all steps in Stage 2 "
        "| difference | all time in Stage 2 | difference | seeds |",
        "| --- " * 9 + "|",
    ]
    base = min((each[0]["facts"]["stage2"] for each in alone.values()), default=0)
    order = sorted(runs.values(), key=lambda each: (each[0]["facts"]["stage1_9"], each[0]["facts"]["stage2"]))
    for each in order:
        length, second = each[0]["facts"]["stage1_9"], each[0]["facts"]["stage2"]
        if length == 0 and second > base:
            continue
        steps = runs.get(f"0+{length + second}", [])
        timed = [interpolated(curves.get(run["seed"], []), second + length * slow / fast) for run in each]
        apart = [final_loss(run) - other for run, other in zip(each, timed, strict=True)]
        none = length == 0
        lines.append(
            f"| {length} + {second} | {spread(map(first_loss, each))} | {spread(map(final_loss, each))} "
            f"| {spread([math.exp(final_loss(run)) for run in each], 1)} "
            f"| {'-' if none else spread(map(final_loss, steps))} "
            f"| {'-' if none else spread(paired(each, steps), signed=True)} "
            f"| {'-' if none else spread(timed)} | {'-' if none else spread(apart, signed=True)} "
            f"| {len(each)} |"
        )
    lines += ["", "| Stage 2 alone, steps | held-out loss | perplexity | seeds |", "| --- " * 4 + "|"]
    for each in sorted(alone.values(), key=lambda each: each[0]["facts"]["stage2"]):
        lines.append(
            f"| {each[0]['facts']['stage2']} | {spread(map(final_loss, each))} "
            f"| {spread([math.exp(final_loss(run)) for run in each], 1)} | {len(each)} |"
        )
    return lines


def schedules(runs: Runs) -> list[str]:
    """Each variant against the shipped recipes, which let the strength rise in Stage 2 only."""
    base = runs.get("lambda in stage 2 only", [])
    lines = [
        "| variant | steps | Stage 1.9: CE of the last 10 steps | where Stage 2 starts | first CE of Stage 2 "
        "| held-out loss | perplexity | difference to the shipped recipes | seeds |",
        "| --- " * 9 + "|",
    ]
    for arm, each in sorted(runs.items(), key=lambda pair: sum(map(final_loss, pair[1])) / len(pair[1])):
        staged = len(each[0]["stages"]) > 1
        lines.append(
            f"| {arm} | {each[0]['facts']['steps']} "
            f"| {spread([last_steps(run, 0) for run in each]) if staged else '-'} | {spread(map(first_loss, each))} "
            f"| {spread([run['stages'][-1]['curve']['ce'][0] for run in each])} | {spread(map(final_loss, each))} "
            f"| {spread([math.exp(final_loss(run)) for run in each], 1)} "
            f"| {'-' if each is base else spread(paired(each, base), signed=True)} "
            f"| {len(each)} |"
        )
    return lines


def masks(runs: Runs) -> list[str]:
    """The loss of every step beside that of the run without the objective."""
    plain = {run["seed"]: run for run in runs.get("no masked objective", [])}
    lines = [
        "| objective on masked tokens | first loss | last loss | largest difference of a step's loss | held-out loss |",
        "| --- " * 5 + "|",
    ]
    for arm, each in runs.items():
        apart = [
            max(abs(a - b) for a, b in zip(_ce(run), _ce(plain[run["seed"]]), strict=True))
            for run in each
            if run["seed"] in plain
        ]
        most = "-" if arm == "no masked objective" else f"{max(apart):.3g}" if any(apart) else "0 (every digit equal)"
        lines.append(
            f"| {arm} | {spread([_ce(run)[0] for run in each])} | {spread([_ce(run)[-1] for run in each])} | {most} "
            f"| {spread(map(final_loss, each), 4)} |"
        )
    return lines


def rates(runs: Runs) -> list[str]:
    """What high rates did: worst moments and ends."""
    lines = [
        "| arm | ended early | non-finite steps | highest CE | largest gradient norm | CE of the last 10 steps "
        "| held-out loss |",
        "| --- " * 7 + "|",
    ]
    for arm, each in sorted(runs.items(), key=lambda pair: (pair[1][0]["facts"]["rate"], pair[0])):
        stages = [run["stages"][-1] for run in each]
        ended = sum(stage["status"] != "COMPLETED" for stage in stages)
        bad = sum(stage["events"].get("nonfinite_step", 0) for stage in stages)
        lines.append(
            f"| {arm} | {ended} of {len(each)} | {bad} | {spread([max(_ce(run)) for run in each], 2)} "
            f"| {spread([max(x or 0.0 for x in stage['curve']['grad_norm']) for stage in stages], 1)} "
            f"| {spread([last_steps(run) for run in each])} | {spread(map(final_loss, each))} |"
        )
    return lines


def compiled(runs: Runs) -> list[str]:
    """Seconds a step without and with torch.compile, and whether a teacher ran."""
    lines = [
        "| run | seconds a step | faster by | first step, s | teacher loaded | fell back | CE of the last step |",
        "| --- " * 7 + "|",
    ]
    for arm, each in sorted(runs.items()):
        plain = runs.get(arm.replace("default", "none"), [])
        faster = [1 / (1 + x) for x in _ratios(each, plain)] if arm.endswith("default") else []
        stages = [run["stages"][-1] for run in each]
        lines.append(
            f"| {arm} | {spread([median_step(run, _WARM) for run in each])} "
            f"| {spread(faster, 2) + ' x' if faster else '-'} "
            f"| {spread([stage['curve']['seconds'][0] for stage in stages], 1)} "
            f"| {sum(any('Loading the teacher' in line for line in stage['said']) for stage in stages)} of {len(each)} "
            f"| {sum(stage['events'].get('fallback', 0) for stage in stages)} "
            f"| {spread([_ce(run)[-1] for run in each])} |"
        )
    return lines


def threads(runs: Runs) -> list[str]:
    """Tokens a second of the engine by threads."""
    lines = [
        "| shape | test | threads | tokens/s, mean ± sd of the runs' medians | times one thread |",
        "| --- " * 5 + "|",
    ]
    for arm, each in sorted(runs.items()):
        found: dict[tuple[str, int], list[float]] = {}
        for run in each:
            for row in run["stages"][-1]["bench"]["results"]:
                found.setdefault((row["test"], row["threads"]), []).append(row["tok_s"]["median"])
        for (test, count), values in found.items():
            times = [a / b for a, b in zip(values, found.get((test, 1), []), strict=False)]
            lines.append(f"| {arm} | {test} | {count} | {spread(values, 1)} | {spread(times, 2)} |")
    return lines


def chosen(runs: Runs) -> list[str]:
    lines = ["| Muon's rate in Stage 2 | held-out loss |", "| --- | --- |"]
    for arm, each in runs.items():
        lines.append(f"| {each[0]['facts']['rate']:g} ({arm}) | {spread(map(final_loss, each))} |")
    return lines


def _ce(run: Result) -> list[float]:
    return run["stages"][-1]["curve"]["ce"]


def _ratios(each: list[Result], plain: list[Result]) -> list[float]:
    other = {run["seed"]: median_step(run, _WARM) for run in plain}
    return [median_step(run, _WARM) / other[run["seed"]] - 1 for run in each if run["seed"] in other]


TABLES = {
    "rates": ("The rate", chosen),
    "stage1.9-length": ("How long Stage 1.9 should be", lengths),
    "scheduling": ("Rising strength, kept columns, Stage 1.9", schedules),
    "masking": ("A masked objective at weight 0", masks),
    "high-rates": ("High Muon rates", rates),
    "compile": ("torch.compile", compiled),
    "threads": ("Threads", threads),
    "choice-rates": ("Rates of AdamW and Muon, distilling", tried_rates),
    "choices": ("What a recipe should choose", compared),
}

if __name__ == "__main__":
    main()
