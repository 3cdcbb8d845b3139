"""A run on its way from one machine to the next, in pieces below 16 MB with checksums.

python parcel.py out WORK PIECES [--texts]     what the next machine needs to go on, cut
python parcel.py in PIECES WORK                put together there; the same command of run.py goes on

Packed: marks of finished stages, of a training in progress its newest whole state with its settings and figures, of
finished stages their checkpoints; with ``--texts`` (once) the corpus, too. The teacher travels by itself. Of states all
steps but the newest stay behind, and so does what a finished stage kept for resuming.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shared"))

from pieces import join, split_files

_STAGES = ("calibrated-group", "calibrated-row", "layerwise", "distilled", "distilled-again", "blocks")
_NAME = "run"


def contents(work: Path, texts: bool) -> Iterator[Path]:
    """Yield the files that are packed."""
    done = work / "done"
    roots = [done, *([work / "corpus"] if texts else [])]
    for root in roots:
        yield from (path for path in sorted(root.rglob("*")) if path.is_file())
    for stage in _STAGES:
        if not (done / stage).exists():
            yield from sorted(path for path in (work / f"{stage}.state").rglob("*") if path.is_file())
        newest = _newest(work / stage / "state") if not (done / stage).exists() else None
        for path in sorted((work / stage).rglob("*")):
            inside = path.relative_to(work / stage).parts
            if path.is_file() and (inside[0] != "state" or (newest is not None and newest in path.parents)):
                yield path


def _newest(states: Path) -> Path | None:
    """A state appears under its name when it is whole."""
    return max((path for path in states.glob("step-*") if path.is_dir()), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    out = verbs.add_parser("out")
    out.add_argument("work", type=Path)
    out.add_argument("pieces", type=Path)
    out.add_argument("--texts", action="store_true")
    out.add_argument("--mib", type=float, default=15.0)
    back = verbs.add_parser("in")
    back.add_argument("pieces", type=Path)
    back.add_argument("work", type=Path)
    a = parser.parse_args()
    if a.verb == "out":
        print(split_files(a.work, contents(a.work, a.texts), a.pieces / _NAME, a.mib))
    else:
        print(join(a.pieces / f"{_NAME}.pieces.json", a.work))


if __name__ == "__main__":
    main()
