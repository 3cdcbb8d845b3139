"""Examples whose right answer is known, as jsonl beside a toy model: classes, completions."""

from __future__ import annotations

import json
from pathlib import Path

from recipe_toys import write_toy


def write_tasks(directory: Path) -> Path:
    """Write a toy (`recipe_toys`), ``classes.jsonl`` and ``completions.jsonl`` into ``directory`` and return it.

    A text is "high" when its first number is 20 or more; a completion repeats the second number.
    """
    write_toy(directory)
    numbers = [(a, b) for a in range(40) for b in range(3)]
    classes = [
        {"text": f"the number {a} and the number {b}", "label": "high" if a >= 20 else "low"} for a, b in numbers
    ]
    completions = [{"prompt": f"the number {a} and the number {b} make", "completion": f" {b}"} for a, b in numbers]
    for name, records in (("classes", classes), ("completions", completions)):
        (directory / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return directory
