"""What is known of how each stage was made: its command, tokens, minutes, hardware and seed, as texts.

Of three sources the first that knows a stage counts: WORK/stages.jsonl, written by hand, one object with KEYS a line
(for what was not run by run.py); WORK/commands.jsonl, which run.py writes; and what a stage's own command left behind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KEYS = ("stage", "command", "tokens", "minutes", "hardware", "seed", "note")
_VERBS = ("corpus", "convert", "train")  # of wf, which make texts and models


def stages(work: Path, names: list[str]) -> list[dict[str, str]]:
    """Return a row with KEYS for each stage, what was not recorded empty. ``names``: the models there must be."""
    rows = {each["stage"]: {key: str(each.get(key, "")) for key in KEYS} for each in _lines(work / "stages.jsonl")}
    for name, row in recorded(work / "commands.jsonl").items():
        rows.setdefault(name, row)
    for name in names:
        row = rows.setdefault(name, dict.fromkeys(KEYS, "") | {"stage": name})
        rows[name] = row | {key: value for key, value in _left_by(work, name).items() if not row[key]}
    return list(rows.values())


def recorded(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of the commands that made texts and models, by the name of what they made.

    The pieces of a command that was stopped and went on are one row, their minutes added.
    """
    rows: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = {}
    for entry in _lines(path):
        words = entry["command"].split()
        if words[:1] != ["wf"] or words[1] not in _VERBS:
            continue
        made = _after(words, "out=") if words[1] == "train" else words[3]
        name = Path(made).name.removesuffix(".jsonl")
        seconds[name] = seconds.get(name, 0.0) + entry["seconds"]
        machine = entry["machine"]
        tokens = _after(words, "--tokens") or _after(words, "budget.total_tokens=")
        rows[name] = {
            "stage": name, "command": entry["command"], "tokens": f"{int(tokens):,}" if tokens else "",
            "minutes": f"{seconds[name] / 60:.0f}", "hardware": f"{machine['cpu']}, {machine['cores']} cores",
            "seed": _after(words, "--seed") or _after(words, "seed="),
            "note": "" if entry["exit"] == 0 else "unfinished",
        }  # fmt: skip
    return rows


def _after(words: list[str], key: str) -> str:
    """Return the value of ``--key VALUE`` or ``key=VALUE`` in a command, or nothing."""
    if key.endswith("="):
        return next((word.removeprefix(key) for word in words if word.startswith(key)), "")
    return words[words.index(key) + 1] if key in words[:-1] else ""


def _left_by(work: Path, name: str) -> dict[str, str]:
    summary, converted, recipe = work / name / "summary.json", work / f"{name}.json", work / name / "recipe.yaml"
    found: dict[str, str] = {}
    if summary.is_file():
        facts = json.loads(summary.read_text(encoding="utf-8"))
        found = {
            "command": f"wf train training={facts['stage']}", "tokens": f"{facts['tokens']:,}",
            "minutes": f"{facts['seconds'] / 60:.0f}", "note": f"recipe {facts['identity']}",
        }  # fmt: skip
    elif converted.is_file():
        facts = json.loads(converted.read_text(encoding="utf-8")).get("calibration") or {}
        found = {"command": "wf convert", "tokens": f"{facts.get('tokens', 0):,}"}
        if "seconds" in facts:
            found["minutes"] = f"{facts['seconds'] / 60:.0f}"
    lines = recipe.read_text(encoding="utf-8").splitlines() if recipe.is_file() else []
    seeds = [line.partition(":")[2].strip() for line in lines if line.startswith("seed:")]
    return found | ({"seed": seeds[0]} if seeds else {})


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.strip()]
