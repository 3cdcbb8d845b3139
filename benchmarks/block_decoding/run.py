"""Measure a packed block-diffusion model: AR, block and speculative decoding, and what rows of a pass cost here.

    python -m benchmarks.block_decoding.run MODEL --out results/NAME [--original SOURCE]
    python -m benchmarks.block_decoding.run --shape bitnet-2b --out results/NAME

Steps write into OUT.json, so each can be made again alone (--steps speed): costs, speed, tasks, quality, report. A
shape has random weights: only its costs are measured, and what so many tokens per forward would gain. See README.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.block_decoding import costs, prompts, quality, report, speed

from wrinklefree.artifact.files import json_bytes, write_bytes
from wrinklefree.engine import Engine
from wrinklefree.engine.native import load_native
from wrinklefree.errors import InputError
from wrinklefree.eval.exact_tasks import exact_tasks
from wrinklefree.eval.speed import SHAPES
from wrinklefree.version import __version__

STEPS = ("costs", "speed", "tasks", "quality", "report")
TASK_TOKENS = 32


def main(arguments: list[str] | None = None) -> None:
    """Run the steps asked for; a user's mistake is one line."""
    options = _options(arguments)
    try:
        run(options, lambda text: print(text, file=sys.stderr, flush=True))
    except InputError as error:
        sys.exit(f"benchmarks.block_decoding: {error}")


def run(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the steps and return the record."""
    if (options.model is None) == (options.shape is None):
        raise InputError("give either a packed model or --shape with one of " + ", ".join(SHAPES))
    steps = _steps(options)
    file = options.out.with_suffix(".json")
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if {"costs", "speed", "tasks"} & set(steps):
        _on_the_engine(options, steps, record, say)
        write_bytes(file, json_bytes(record))
    if "quality" in steps:
        say("quality: the original model reads the answers")
        quality.add(record, options.original)
        write_bytes(file, json_bytes(record))
    if "report" in steps:
        write_bytes(options.out.with_suffix(".md"), report.markdown(record, options.out.name).encode())
        if "speed" in record:
            report.picture(record, options.out.with_suffix(".png"))
    return record


def _steps(options: argparse.Namespace) -> list[str]:
    steps = list(options.steps or STEPS)
    if options.shape is not None:
        steps = [step for step in steps if step in ("costs", "report")]
    if options.original is None and "quality" in steps and options.steps:
        raise InputError("step quality: needs --original, the model whose perplexity is asked for")
    return [step for step in steps if step != "quality" or options.original is not None]


def _on_the_engine(
    options: argparse.Namespace, steps: list[str], record: dict[str, Any], say: Callable[[str], None]
) -> None:
    engine = _engine(options)
    record["model"] = str(options.model.name if options.model else options.shape)
    record["dlm"] = (engine.config.get("wrinklefree") or {}).get("dlm")
    record["machine"] = {
        "cpu": load_native().kernels.cpu_name(), "kernels": engine.kernels_name, "threads": engine.threads,
        "python": platform.python_version(), "version": __version__,
    }  # fmt: skip
    if "costs" in steps:
        say("costs: passes of 1 to 32 rows")
        record["costs"] = costs.row_costs(engine, options.cost_repeats)
        record["possible"] = costs.possible_speed_ups(record["costs"])
    if "speed" in steps or "tasks" in steps:
        if "costs" not in record:
            raise InputError("step speed: the costs of passes are missing; run step costs first")
        everything = prompts.prompts(engine.tokenizer, options.prompts)
        fit, record["refused"] = speed.possible(engine, everything[0], speed.ways(options.way or ()))
    if "speed" in steps:
        record["prompts"] = [{"kind": prompt.kind, "tokens": list(prompt.tokens)} for prompt in everything]
        record["speed"] = {
            "max_tokens": options.tokens, "repeats": options.repeats,
            "ways": speed.measure(
                engine, everything, fit, options.tokens, options.repeats, record["costs"], say
            ),
        }  # fmt: skip
    if "tasks" in steps:
        tasks = exact_tasks(options.seed, options.tasks)
        asked = prompts.of_tasks(engine.tokenizer, tasks)
        record["tasks"] = {
            "seed": options.seed, "of_each": options.tasks, "max_tokens": TASK_TOKENS,
            "ways": quality.right_answers(engine, tasks, asked, fit, TASK_TOKENS, say),
        }  # fmt: skip
    del engine
    gc.collect()


def _engine(options: argparse.Namespace) -> Engine:
    if options.model is not None:
        return Engine.load(options.model, threads=options.threads, context=options.context)
    if options.shape not in SHAPES:
        raise InputError(f"--shape {options.shape}: allowed are {', '.join(SHAPES)}")
    granularity = {"bitnet-2b": "tensor", "smollm2-135m": "group", "qwen3-0.6b": "group"}.get(options.shape, "row")
    return Engine.random(SHAPES[options.shape], granularity, threads=options.threads, context=options.context)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="packed model (wf export)")
    parser.add_argument("--shape", help="random weights of this shape instead: costs only")
    parser.add_argument("--original", help="the model that was made ternary: its perplexity of what was written")
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.json, OUT.md and OUT.png")
    parser.add_argument("--steps", nargs="+", choices=STEPS, help="default: all that can be made")
    parser.add_argument("--way", nargs="+", help="only ways of decoding whose name begins so, such as 'block t='")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--prompts", type=int, choices=range(1, 11), default=4, help="of each kind")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cost-repeats", type=int, default=25)
    parser.add_argument("--tasks", type=int, default=10, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
