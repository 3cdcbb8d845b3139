"""A record as Markdown tables and a picture of speed against quality."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.block_decoding.costs import TOKENS_PER_FORWARD


def markdown(record: dict[str, Any], name: str) -> str:
    """Return the report of a record; ``name``: of the picture, without its ending."""
    machine, dlm = record["machine"], record.get("dlm")
    lines = [
        f"# {record['model']}",
        "",
        f"{machine['cpu']}, {machine['threads']} threads, {machine['kernels']} kernels, wrinklefree "
        f"{machine['version']}." + (f" Blocks of {dlm['block_size']}, variant {dlm['variant']}." if dlm else ""),
        "",
        "## What a pass costs",
        "",
        "Time of a pass by its rows, relative to one row: median over rounds, lower and upper quarter, and ratio of "
        "the least times, which other work on the machine disturbs least.",
        "",
        *_table(
            ("rows", "ms", "relative", "lower quarter", "upper quarter", "least times"), _cost_rows(record["costs"])
        ),
        "",
        "A model with so many tokens per forward would gain, with passes of so many rows:",
        "",
        *_table(
            ("rows", *(f"{tokens:g} a forward" for tokens in TOKENS_PER_FORWARD)),
            ((f"{row['rows']}", *(f"{row[f'{t:g}']:.2f}x" for t in TOKENS_PER_FORWARD)) for row in record["possible"]),
        ),
        "",
    ]
    if "speed" in record:
        lines += _speed(record)
    if "tasks" in record:
        lines += _tasks(record["tasks"])
    if record.get("refused"):
        lines += ["## Not measured", "", *(f"- {way}: {why}" for way, why in record["refused"].items()), ""]
    if "speed" in record:
        lines += [f"![speed and quality]({name}.png)", ""]
    return "\n".join(lines)


def _cost_rows(costs: Sequence[dict[str, Any]]) -> Iterable[tuple[str, ...]]:
    for cost in costs:
        yield (
            str(cost["rows"]), f"{cost['milliseconds']:.2f}",
            *(f"{cost[key]:.2f}" for key in ("relative", "low", "high", "undisturbed")),
        )  # fmt: skip


def _speed(record: dict[str, Any]) -> list[str]:
    found, total = record["speed"], len(record["prompts"])
    columns = ("way", "tok/s", "to AR", "by arithmetic", "tokens", "forwards", "tokens a forward", "rows a pass")
    lines = [
        "## Speed",
        "",
        f"Greedy, at most {found['max_tokens']} tokens after each of {total} prompts, {found['repeats']} interleaved "
        "repeats, medians. By arithmetic: tokens a forward divided by the mean relative cost of the passes made.",
        "",
        *_table(columns, (_speed_row(way) for way in found["ways"])),
        "",
    ]
    if "quality" not in found["ways"][0]:
        return lines
    columns = (
        "way", "perplexity", "its first choice", "distinct-1", "distinct-3", "repeated 4-grams", "longest run",
        "equal to AR", "common prefix", "same answers",
    )  # fmt: skip
    return [
        *lines,
        "## Quality",
        "",
        f"Perplexity of the answers under {record['original']}, and the share of tokens it would choose itself. Low "
        "perplexity with few different n-grams is repetition, no quality. Against AR: share of equal tokens, mean "
        "common prefix in tokens, share of answers that are the same.",
        "",
        *_table(columns, (_quality_row(way) for way in found["ways"])),
        "",
    ]


def _speed_row(way: dict[str, Any]) -> tuple[str, ...]:
    return (
        way["name"], _or_dash(way["tok_s"], ".1f"), _or_dash(way["speed_up"], ".2f"),
        f"{way['speed_up_by_arithmetic']:.2f}", str(way["tokens"]), str(way["forwards"]),
        f"{way['tokens_per_forward']:.2f}", _or_dash(way["mean_rows"], ".1f"),
    )  # fmt: skip


def _quality_row(way: dict[str, Any]) -> tuple[str, ...]:
    found, like = way["quality"], way["like_ar"]
    return (
        way["name"], f"{found['teacher_perplexity']:.2f}", f"{found['teacher_first']:.1%}",
        f"{found['distinct_1']:.2f}", f"{found['distinct_3']:.2f}", f"{found['repeated_4']:.1%}",
        str(found["longest_run"]), f"{like['equal']:.1%}", f"{like['prefix']:.1f}", f"{like['same']:.0%}",
    )  # fmt: skip


def _tasks(tasks: dict[str, Any]) -> list[str]:
    kinds = list(tasks["ways"][0]["right"])
    rows = (
        (way["name"], *(f"{way['right'][kind]:.0%}" for kind in kinds), f"{way['tokens'] / way['forwards']:.2f}")
        for way in tasks["ways"]
    )
    return [
        "## Tasks with one right answer",
        "",
        f"Exact match, {tasks['of_each']} of each kind (seed {tasks['seed']}).",
        "",
        *_table(("way", *kinds, "tokens a forward"), rows),
        "",
    ]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def picture(record: dict[str, Any], path: Path) -> None:
    """Draw speed against perplexity and against right answers (where they were measured), and the cost of rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ways = [way for way in record["speed"]["ways"] if way["speed_up"] is not None]
    right = {way["name"]: way["right"]["all"] for way in record.get("tasks", {}).get("ways", [])}
    panels: list[tuple[str, dict[str, float]]] = []
    if "quality" in ways[0]:
        panels.append(("perplexity under the original", {w["name"]: w["quality"]["teacher_perplexity"] for w in ways}))
    if right:
        panels.append(("tasks answered right", right))
    figure, axes = pyplot.subplots(1, len(panels) + 1, figsize=(6 * (len(panels) + 1), 5), squeeze=False)
    for axis, (label, values) in zip(axes[0], panels, strict=False):
        _points(axis, [way for way in ways if way["name"] in values], values)
        axis.set(xlabel="speed relative to AR (measured)", ylabel=label)
        if label.startswith("tasks"):
            axis.set_ylim(-0.03, 1.05)
    _costs(axes[0][-1], record["costs"])
    machine = record["machine"]
    figure.suptitle(f"{record['model']} on {machine['cpu']}, {machine['threads']} threads")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _points(axis: Any, ways: Sequence[dict[str, Any]], values: dict[str, float]) -> None:
    """Thresholds as a line, other ways as points, each with its name."""
    line = [way for way in ways if way["name"].startswith("block t=") and "sub" not in way["name"]]
    axis.plot([way["speed_up"] for way in line], [values[way["name"]] for way in line], color="tab:blue", zorder=1)
    colours = {"ar": "black", "block": "tab:blue", "speculative": "tab:orange"}
    for way in ways:
        kind = way["name"].split(" ")[0]
        axis.scatter(way["speed_up"], values[way["name"]], color=colours[kind], zorder=2)
        axis.annotate(
            way["name"].removeprefix("block "), (way["speed_up"], values[way["name"]]), fontsize=7,
            xytext=(2, 4), textcoords="offset points", rotation=40,
        )  # fmt: skip
    axis.axvline(1.0, color="black", linestyle=":", linewidth=0.8)
    axis.grid(alpha=0.3)


def _costs(axis: Any, costs: Sequence[dict[str, Any]]) -> None:
    rows = [cost["rows"] for cost in costs]
    relative = [cost["relative"] for cost in costs]
    axis.plot(rows, relative, marker="o", color="tab:green", label="measured")
    axis.fill_between(rows, [c["low"] for c in costs], [c["high"] for c in costs], color="tab:green", alpha=0.2)
    axis.plot(rows, rows, color="black", linestyle=":", label="as many single rows")
    axis.set(xlabel="rows of a pass", ylabel="time relative to one row", ylim=(0, 1.3 * max(relative)))
    axis.legend()
    axis.grid(alpha=0.3)
