"""Other programs continue texts from files we write: greedy tokens and logits beside our engine's.

Each model is exported to each format, verified as every export is, and read by the program named for the format; the
table says how far they agree over six prompts of 64 tokens. Usage:

    python benchmarks/foreign_readers/run.py OUT.json --model smollm2=CHECKPOINT --model toy=CHECKPOINT \\
        --read gguf-tq1_0=PROGRAM --read gguf-tq2_0=PROGRAM --read gguf-i2_s=PROGRAM --read hf=transformers
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from wrinklefree.artifact.sources import read_parts
from wrinklefree.engine import Engine
from wrinklefree.errors import InputError, VerificationError
from wrinklefree.export.export import ExportReport, export
from wrinklefree.export.foreign import compare_with_program
from wrinklefree.export.formats import ALIASES, FORMATS

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "In 1969, 2 people walked on the Moon; they stayed for",
    "The most important thing to know about the ocean is that",
    "To make a cup of tea, first",
    "A list is a mutable sequence in Python, which means",
)
TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--read", action="append", required=True, metavar="FORMAT=PROGRAM")
    parser.add_argument("--embedding", help="precision of embedding and head; default: the format's own")
    parser.add_argument("--lossy", action="store_true", help="convert what a format cannot hold")
    arguments = parser.parse_args()
    rows = []
    for name, source in (entry.split("=", 1) for entry in arguments.model):
        for format, program in (entry.split("=", 1) for entry in arguments.read):
            row = _try(Path(source), format, program, arguments)
            rows.append({"model": name, "format": format, "tokens": TOKENS, **row})
            print(_line(rows[-1]), flush=True)
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def _try(source: Path, format: str, program: str, arguments: argparse.Namespace) -> dict[str, Any]:
    entry = FORMATS[ALIASES.get(format, format)]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / ("model.gguf" if entry.is_file else "model")
        try:
            report = export(source, out, format, arguments.embedding, threads=1, lossy=arguments.lossy)
        except (InputError, VerificationError) as error:
            return {"refused": str(error)}
        parts = read_parts(out)
        engine = Engine.from_parts(parts, threads=1, kv_type="float32")
        try:
            found = compare_with_program(program, out, parts, engine, PROMPTS, TOKENS)
        except VerificationError as error:
            return {"types": _types(report), "failed": str(error)}
    return {"types": _types(report), **found.to_json(), "problems": found.problems} | _seconds(started)


def _seconds(started: float) -> dict[str, float]:
    return {"seconds": round(time.perf_counter() - started, 1)}


def _types(report: ExportReport) -> dict[str, int]:
    """How many tensors the file has of each type."""
    kinds: dict[str, int] = {}
    for change in report.tensors:
        kinds[change.written_type] = kinds.get(change.written_type, 0) + 1
    return kinds


def _line(row: dict[str, Any]) -> str:
    head = f"| {row['model']} | {row['format']} "
    if told := row.get("refused") or row.get("failed"):
        return f"{head}| {'refused' if 'refused' in row else 'failed'}: {told} |"
    explained = sum(d["explained"] for d in row["differences"])
    cosine = row["logit_cosine_min"]
    return (
        f"{head}| {row['program']} {row['version']} | {row['greedy_tokens_equal']} of {row['greedy_tokens']} "
        f"| {row['same_choices']} | {explained} of {len(row['differences'])} | "
        f"{'-' if cosine is None else f'{cosine:.5f}'} | {row['log_probability_max_difference']:.3f} "
        f"| {row['kl_mean']:.1e} | {row['distance']:.4f} | {row['rounding_distance']:.4f} | {row['own_distance']:.4f} "
        f"| {'yes' if row['passed'] else 'NO: ' + '; '.join(row['problems'])} |"
    )


if __name__ == "__main__":
    main()
