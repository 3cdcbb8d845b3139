"""The table of finished arms: python report.py DIR_OF_RESULTS. The interval is Wilson's, 95 %."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from wrinklefree.eval.class_figures import interval


def main() -> None:
    print("| arm | seed | positions | rate | held out | accuracy | 95 % | loss |\n|" + " --- |" * 8)
    for path in sorted(Path(sys.argv[1]).glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        count = int(found["examples"])
        low, high = interval(round(found["accuracy"] * count), count)
        print(
            f"| {found['arm']} | {found['seed']} | {found['positions']:,} | {found['rate']:g} | {count:,} of "
            f"{found['held_out_split']} | {found['accuracy']:.1%} | {low:.1%} to {high:.1%} | {found['loss']:.3f} |"
        )


if __name__ == "__main__":
    main()
