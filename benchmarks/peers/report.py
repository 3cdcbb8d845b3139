"""From a record of `runner.run_plan` to medians, ratios and a Markdown table for each shape and number of threads."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers.plan import BenchTest

DISTURBED_SHARE = 0.05  # of the machine, taken by other processes
PASS_TOKENS = 64  # a prompt up to this long is also given in decode steps


@dataclass
class Cell:
    """The repeats of one test: seconds, and the largest share of the machine that others took in a visit."""

    test: BenchTest
    seconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """Tokens a second, median."""
        return statistics.median(self.speeds)

    @property
    def speeds(self) -> list[float]:
        return [self.test.tokens / value for value in self.seconds]

    @property
    def disturbed(self) -> bool:
        return statistics.median(self.others) > DISTURBED_SHARE

    def text(self) -> str:
        """Return median, range, and a mark where other work was on the machine."""
        low, high = min(self.speeds), max(self.speeds)
        return f"{_short(self.speed)}{'!' if self.disturbed else ''} ({_short(low)}-{_short(high)})"


@dataclass
class Row:
    """One engine in a table."""

    engine: str
    ours: bool
    head: str
    note: str
    version: str = ""
    bytes_per_token: int = 0
    cells: dict[str, Cell] = field(default_factory=dict)

    def steps(self, test: str) -> float | None:
        """Return the time of a pass in decode steps, None where one of the two is missing."""
        decode = next((cell for cell in self.cells.values() if cell.test.decodes), None)
        cell = self.cells.get(test)
        if cell is None or decode is None:
            return None
        return cell.test.tokens / cell.speed * decode.speed


def rows(record: Mapping[str, Any], shape: str, threads: int) -> list[Row]:
    """Return the engines that were measured with a shape and a number of threads, in the plan's order."""
    found: dict[str, Row] = {}
    for entry in record["plan"]["contestants"]:
        if shape in entry["models"]:
            model = entry["models"][shape]
            found[entry["name"]] = Row(entry["name"], entry["ours"], model["head"], model["note"])
    for sample in record["samples"]:
        if (sample["shape"], sample["threads"]) != (shape, threads):
            continue
        row = found[sample["engine"]]
        row.version, row.bytes_per_token = sample["version"], sample["bytes_per_token"]
        for name, seconds in sample["seconds"].items():
            cell = row.cells.setdefault(name, Cell(BenchTest(name)))
            cell.seconds += seconds
            cell.others.append(sample["others"])
    return [row for row in found.values() if row.cells]


def fastest_peer(table: Sequence[Row], test: str) -> Row | None:
    """Return the peer with the highest median of a test, None where no peer has it."""
    peers = [row for row in table if not row.ours and test in row.cells]
    return max(peers, key=lambda row: row.cells[test].speed, default=None)


def ratio(row: Row, table: Sequence[Row], test: str) -> tuple[float, str] | None:
    """Return the speed of ``row`` over that of the fastest peer and the peer's name, None where one is missing."""
    best = fastest_peer(table, test)
    if best is None or test not in row.cells:
        return None
    return row.cells[test].speed / best.cells[test].speed, best.engine


def markdown(record: Mapping[str, Any]) -> str:
    """Return the whole report."""
    machine = record["machine"]
    lines = [f"Machine: {machine.get('cpu', 'unknown')}."]
    for threads, speeds in machine.get("read_gb_s", {}).items():
        lines.append(f"Memory read with {threads} threads: {max(speeds):.1f} GB/s (best of {len(speeds)}).")
    tests = [name for group in record["plan"]["groups"] for name in group]
    tests.sort(key=lambda name: (not BenchTest(name).decodes, BenchTest(name).tokens))
    versions: dict[str, str] = {}
    notes: dict[str, str] = {}
    for shape in record["plan"]["shapes"]:
        for threads in record["plan"]["threads"]:
            table = rows(record, shape, threads)
            if not table:
                continue
            versions.update((row.engine, row.version) for row in table)
            notes.update((f"{row.engine}, {shape}", row.note) for row in table if row.note)
            bandwidth = max(machine.get("read_gb_s", {}).get(str(threads), [0.0]))
            lines += ["", f"### {shape}, {threads} thread{'s' if threads > 1 else ''}", ""]
            lines += _table(table, tests, bandwidth)
    counts = {len(s) for sample in record["samples"] for s in sample["seconds"].values()}
    repeats = record["plan"]["rounds"] * max(counts, default=0)
    lines += ["", f"tok/s: median of {repeats} (range). `!`: other processes took more than 5 % of the machine."]
    lines += ["MB a token: weights read for a decoded token. x steps: time of the pass in decode steps."]
    lines += ["", "Versions: " + "; ".join(f"{name} {version}" for name, version in versions.items()) + "."]
    lines += [f"{name}: {note}." for name, note in notes.items()]
    lines += [f"FAILED: {failure['visit']}: {failure['error']}" for failure in record["failures"]]
    return "\n".join(lines) + "\n"


def _table(table: Sequence[Row], tests: Sequence[str], bandwidth: float) -> list[str]:
    decode = next((name for name in tests if BenchTest(name).decodes), None)
    titles = ["engine", "head", "MB a token", *([f"{decode} GB/s (of read)"] if decode else []), *tests]
    lines = ["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]
    for row in table:
        cells = [f"**{row.engine}**" if row.ours else row.engine, row.head, f"{row.bytes_per_token / 1e6:.0f}"]
        if decode:
            cells.append(_rate(row, decode, bandwidth))
        lines.append("| " + " | ".join([*cells, *(_cell(row, name) for name in tests)]) + " |")
    for row in table:
        if row.ours and any(not other.ours for other in table):
            blank = [""] * (3 if decode else 2)
            found = [ratio(row, table, name) for name in tests]
            texts = ["-" if pair is None else f"**{pair[0]:.2f}x** {pair[1]}" for pair in found]
            lines.append("| " + " | ".join([f"{row.engine} / fastest peer", *blank, *texts]) + " |")
    return lines


def _rate(row: Row, decode: str, bandwidth: float) -> str:
    if decode not in row.cells:
        return "-"
    rate = row.bytes_per_token * row.cells[decode].speed * 1e-9
    return f"{rate:.1f}" + (f" ({rate / bandwidth:.0%})" if bandwidth else "")


def _cell(row: Row, name: str) -> str:
    if name not in row.cells:
        return "-"
    test, steps = BenchTest(name), row.steps(name)
    with_steps = not test.decodes and test.tokens <= PASS_TOKENS and steps is not None
    return row.cells[name].text() + (f" {steps:.1f} steps" if with_steps else "")


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
