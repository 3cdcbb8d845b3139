"""The tables of this directory, run: one JSON file for each arm and seed.

python run.py WORK --table NAME|all [--scale cpu|gpu|smoke] [--seeds 0,1,2] [--arms "A;B"] [--results DIR]

What is finished is not run again: the same command goes on after an interruption, and another table takes over the
stages that it shares. ``WORK`` holds checkpoints and logs; ``DIR`` (default: results/SCALE here) the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from arms import Arm  # noqa: E402
from runner import Runner  # noqa: E402
from settings import SCALES  # noqa: E402
from tables import TABLES  # noqa: E402


def main() -> None:
    arguments = _arguments()
    scale = SCALES[arguments.scale]
    results = arguments.results or HERE / "results" / arguments.scale
    results.mkdir(parents=True, exist_ok=True)
    runner = Runner(arguments.work.resolve(), scale)
    _save(results / "teacher.json", runner.teacher_result(), runner.work)
    tables = list(TABLES) if arguments.table == "all" else arguments.table.split(",")
    if not any(_asked(TABLES[table](scale), arguments.arms) for table in tables):
        raise SystemExit(f"--arms {arguments.arms}: no such arm in {', '.join(tables)}")
    for seed in map(int, arguments.seeds.split(",")):
        for table in tables:
            for arm in _asked(TABLES[table](scale), arguments.arms):
                path = results / table / f"{_file(arm.name)}-seed{seed}.json"
                if path.exists():
                    continue
                path.parent.mkdir(exist_ok=True)
                result = {"table": table, "scale": arguments.scale, **runner.run(arm, seed)}
                _save(path, result, runner.work)
                print(f"{table}, {arm.name}, seed {seed}: {_line(result)}", flush=True)


def _asked(arms: list[Arm], names: str | None) -> list[Arm]:
    return [arm for arm in arms if names is None or arm.name in names.split(";")]


def _line(result: dict) -> str:
    last = result["stages"][-1]
    loss = f"held-out loss {last['held_out']['loss']:.4f}" if "held_out" in last else last["status"]
    return f"{loss}, {sum(stage['seconds'] for stage in result['stages']):.0f} s"


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "+." else "-" for letter in name).replace("--", "-")


def _save(path: Path, value: dict, work: Path) -> None:
    """Write a result; where ``work`` was is nobody else's business."""
    text = json.dumps(value, separators=(",", ":")).replace(str(work), "WORK")
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--table", default="all", help=f"one or more of {', '.join(TABLES)}, with commas; or all")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", help="only these of the tables, with semicolons between them")
    parser.add_argument("--results", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
