"""A record as Markdown: medians over rounds, ratios to llama-server of the same round, faults in plain words."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

PEER = "llama-server"
BUSY_OTHERS = 0.05  # of a processor: figures with more of other work beside them are marked


def wrong(record: dict[str, Any]) -> list[str]:
    """Return what must not be: our lost, malformed or different answers, a word for each phase or flood."""
    found = []
    for phase in record["phases"]:
        if phase["ours"] and (phase["faulty"] or phase["checked"]["different"]):
            found.append(
                f"{phase['contestant']}, {phase['workload']}, {phase['streams']} streams, round {phase['round'] + 1}: "
                f"{phase['faulty']} faulty, {phase['checked']['different']} different {phase['faults'][:1]}"
            )
    for flood in record["floods"]:
        lost = flood["streams"]["lost"] + flood["goodput"]["lost"]
        if flood["contestant"] != PEER and (lost or flood["faults"]):
            found.append(f"flood of {flood['contestant']}: {lost} lost {flood['goodput']['faults'] or flood['faults']}")
    return found


def line(phase: dict[str, Any]) -> str:
    """Return one line about a phase, for whoever waits."""
    first, between = phase["first_ms"] or {}, phase["between_ms"] or {}
    return (
        f"round {phase['round'] + 1} {phase['workload']:8} {phase['streams']:2} streams {phase['contestant']:24} "
        f"{phase['tokens_per_second']:7.1f} tok/s, first {first.get('p50', 0):6.0f} ms, between "
        f"{between.get('p50', 0):5.1f} ms, {phase['checked']['different']} of {phase['checked']['compared']} different"
        + (f", {phase['faulty']} FAULTY: {phase['faults'][:1]}" if phase["faulty"] else "")
    )


def markdown(record: dict[str, Any]) -> str:
    """Return the report of a record."""
    machine, sizes = record["machine"], record["sizes"]
    names = list(dict.fromkeys(phase["contestant"] for phase in record["phases"]))
    files = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in record["files"].items())
    lines = [
        "# Under load",
        "",
        f"{machine['cpu']}, {machine['processors']} processors; both servers with {sizes['threads']} threads, "
        f"{sizes['slots']} slots of {sizes['context']} tokens; wrinklefree {machine['version']}. Files: {files}. "
        f"The load runs on the same processors. {record['rounds']} rounds in turns, phases of "
        f"{record['phase_seconds']:.1f} s, {_how(record)} answers of {record['tokens']} tokens; medians of rounds, "
        f"`!`: other programs took more than {BUSY_OTHERS:.0%} of a processor in one of them.",
        "",
    ]
    for workload in dict.fromkeys(phase["workload"] for phase in record["phases"]):
        lines += _workload(record, workload, names)
    lines += [_flood(flood) for flood in record["floods"]]
    found = wrong(record)
    lines += ["## Wrong answers of ours", "", *([f"- {each}" for each in found] or ["None."]), ""]
    return "\n".join(lines)


def _how(record: dict[str, Any]) -> str:
    return f"seeded (temperature {record['temperature']:g})" if record["temperature"] else "greedy"


_COLUMNS = (
    "streams", "server", "tokens/s", "to llama-server", "first token p50 / p95 / p99, ms",
    "between p50 / p95 / p99, ms", "tokens a piece", "prompt cached", "processors: server, load", "MiB",
    "different from alone", "faulty",
)  # fmt: skip


def _workload(record: dict[str, Any], workload: str, names: Sequence[str]) -> list[str]:
    phases = [phase for phase in record["phases"] if phase["workload"] == workload]
    tokens = statistics.median(phase["prompt_tokens"] for phase in phases)
    rows = []
    for streams in sorted({phase["streams"] for phase in phases}):
        for name in names:
            mine = [p for p in phases if p["streams"] == streams and p["contestant"] == name]
            peer = {p["round"]: p for p in phases if p["streams"] == streams and p["contestant"] == PEER}
            if mine:
                rows.append(_row(streams, name, mine, peer))
    title = {"distinct": "Prompts that share nothing", "shared": "The same questions behind the same instructions"}
    return [f"## {title[workload]} (about {tokens:.0f} tokens)", "", *_table(_COLUMNS, rows), ""]


def _row(streams: int, name: str, mine: Sequence[dict[str, Any]], peer: dict[int, dict[str, Any]]) -> list[str]:
    def median(value: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(value(phase) for phase in mine)

    ratios = [
        phase["tokens_per_second"] / peer[phase["round"]]["tokens_per_second"]
        for phase in mine
        if phase["round"] in peer and peer[phase["round"]]["tokens_per_second"]
    ]
    busy = any(phase["used"]["others"] > BUSY_OTHERS for phase in mine)
    compared = sum(phase["checked"]["compared"] for phase in mine)
    return [
        str(streams), name, f"{median(lambda p: p['tokens_per_second']):.0f}" + (" !" if busy else ""),
        f"{statistics.median(ratios):.2f}" if ratios and name != PEER else "",
        _quantiles(mine, "first_ms", ".0f"), _quantiles(mine, "between_ms", ".1f"),
        f"{median(lambda p: p['tokens_per_piece']):.2f}", f"{median(lambda p: p['cached_share']):.0%}",
        f"{median(lambda p: p['used']['server']):.2f}, {median(lambda p: p['used']['load']):.2f}",
        f"{mine[-1]['memory_bytes'] / 2**20:.0f}",
        f"{sum(phase['checked']['different'] for phase in mine)} of {compared}",
        f"{sum(phase['faulty'] for phase in mine)} of {sum(phase['requests'] for phase in mine)}",
    ]  # fmt: skip


def _quantiles(phases: Sequence[dict[str, Any]], key: str, form: str) -> str:
    found = [phase[key] for phase in phases if phase[key]]
    if not found:
        return "-"
    return " / ".join(format(statistics.median(each[name] for each in found), form) for name in found[0])


def _flood(flood: dict[str, Any]) -> str:
    streams, goodput, capacity = flood["streams"], flood["goodput"], flood["capacity"]
    speeds = streams["pieces_per_second"]
    rows = [
        ("answers of 16 tokens a second without a flood", f"{capacity['requests_per_second']:.1f}"),
        ("requests a second in the flood", f"{flood['per_second']:.1f}"),
        (f"pieces a second of {streams['slots']} running streams: quiet and flood in turns",
         f"{', '.join(f'{speed:.0f}' for speed in speeds)} (keeps {streams['kept']:.0%})"),
        ("beside them: requests, refused with 429, answered, lost",
         f"{streams['requests']}, {streams['refused']}, {streams['answered']}, {streams['lost']}"),
        ("a refusal takes, ms, p50 / p95 / p99", _of(streams["refused_ms"])),
        ("refusals without Retry-After",
         str(streams["refusals_without_retry_after"] + goodput["refusals_without_retry_after"])),
        ("without running streams: requests, refused, answered, lost",
         f"{goodput['requests']}, {goodput['refused']}, {goodput['answered']}, {goodput['lost']}"),
        ("answers a second within the flood",
         f"{goodput['requests_per_second']:.1f} "
         f"({goodput['requests_per_second'] / max(1e-9, capacity['requests_per_second']):.0%} of capacity)"),
        ("first token of the answered, ms, p50 / p95 / p99", _of(goodput["first_ms"])),
        ("until the last answer, s", f"{goodput['wall']:.1f}"),
        ("first token of a single request before and after, ms",
         f"{flood['first_ms_before']:.0f}, {flood['first_ms_after']:.0f}"),
        ("MiB before and after", f"{flood['memory_before'] / 2**20:.0f}, {flood['memory_after'] / 2**20:.0f}"),
    ]  # fmt: skip
    return "\n".join([f"## A flood: {flood['contestant']}", "", *_table(("", ""), rows), ""])


def _of(found: dict[str, float] | None) -> str:
    return " / ".join(f"{value:.0f}" for value in found.values()) if found else "-"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]
