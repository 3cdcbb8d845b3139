"""The speed and the quality of every way to decode one packed model, by benchmarks/block_decoding in one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Beginnings of names: thresholds from careless to sure, a fixed number of tokens, and AR-consistent decoding.
WAYS = ("block t=0.5", "block t=0.7", "block t=0.9", "block n=2", "speculative w=1", "speculative w=2",
        "speculative auto")  # fmt: skip
_KEPT = ("name", "tokens", "tokens_per_forward", "tok_s", "tok_s_repeats", "speed_up", "speed_up_repeats",
         "speed_up_by_arithmetic", "quality", "like_ar")  # fmt: skip


@dataclass(frozen=True)
class SpeedSizes:
    """``prompts``: of each of two kinds; ``tokens``: most of an answer; ``context``: room for both."""

    prompts: int
    tokens: int
    repeats: int
    cost_repeats: int
    context: int = 512


def speed(packed: Path, original: Path | None, out: Path, threads: int, sizes: SpeedSizes) -> dict[str, Any]:
    """Run the benchmark; return what it found of each way, without the answers (``out``.json has them).

    ``original``: the teacher that judges the answers, None to leave that out.

    Raises: SystemExit with the benchmark's exit code.
    """
    for ending in (".json", ".md", ".png"):
        out.with_suffix(ending).unlink(missing_ok=True)  # of another model, perhaps
    command = [
        sys.executable, "-m", "benchmarks.block_decoding.run", str(packed), "--out", str(out), "--threads",
        str(threads), "--prompts", str(sizes.prompts), "--tokens", str(sizes.tokens), "--repeats", str(sizes.repeats),
        "--cost-repeats", str(sizes.cost_repeats), "--context", str(sizes.context), "--way", *WAYS,
        *(["--original", str(original)] if original else []),
        "--steps", "costs", "speed", *(["quality"] if original else []), "report",
    ]  # fmt: skip
    path = os.pathsep.join(part for part in (str(ROOT / "src"), os.environ.get("PYTHONPATH")) if part)
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        raise SystemExit(done.returncode)
    record = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    return {
        "machine": record["machine"], "max_tokens": sizes.tokens, "repeats": sizes.repeats,
        "prompts": len(record["prompts"]), "refused": sorted(record["refused"]),
        "costs": [{key: cost[key] for key in ("rows", "relative")} for cost in record["costs"]],
        "ways": [{key: way[key] for key in _KEPT if key in way} for way in record["speed"]["ways"]],
    }  # fmt: skip
