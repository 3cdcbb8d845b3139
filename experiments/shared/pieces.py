"""Files cut into pieces that a transfer with a size limit takes, and put together again, checked.

python pieces.py split FILE DIRECTORY [--mib 15]
python pieces.py join DIRECTORY/FILE.pieces.json [OUT]

DIRECTORY gets FILE.000, FILE.001, ... and FILE.pieces.json with the SHA-256 of every piece and of the whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

_READ = 1 << 20


def split(file: Path, directory: Path, mib: float = 15.0) -> Path:
    """Cut ``file`` into pieces of at most ``mib`` MiB; return the list of them."""
    directory.mkdir(parents=True, exist_ok=True)
    size, whole = max(1, int(mib * 2**20)), hashlib.sha256()
    pieces: list[dict[str, str | int]] = []
    with file.open("rb") as source:
        while data := source.read(size):
            name = f"{file.name}.{len(pieces):03d}"
            (directory / name).write_bytes(data)
            whole.update(data)
            pieces.append({"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    listing = directory / f"{file.name}.pieces.json"
    content = {"file": file.name, "sha256": whole.hexdigest(), "pieces": pieces}
    listing.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return listing


def join(listing: Path, out: Path | None = None) -> Path:
    """Put the pieces beside ``listing`` together, in ``out`` or beside them.

    Raises: SystemExit naming every piece that is missing or damaged.
    """
    content = json.loads(listing.read_text(encoding="utf-8"))
    wrong = [piece["name"] for piece in content["pieces"] if _hash(listing.parent / piece["name"]) != piece["sha256"]]
    if wrong:
        raise SystemExit(f"{listing}: missing or damaged: {', '.join(wrong)}; bring these again")
    out = out or listing.parent / content["file"]
    partial = out.with_name(f".{out.name}.partial")
    with partial.open("wb") as target:
        for piece in content["pieces"]:
            target.write((listing.parent / piece["name"]).read_bytes())
    if _hash(partial) != content["sha256"]:
        partial.unlink()
        raise SystemExit(f"{listing}: the pieces are whole, but together they are another file")
    partial.replace(out)
    return out


def _hash(path: Path) -> str | None:
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ):
            digest.update(data)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    cut = verbs.add_parser("split")
    cut.add_argument("file", type=Path)
    cut.add_argument("directory", type=Path)
    cut.add_argument("--mib", type=float, default=15.0)
    put = verbs.add_parser("join")
    put.add_argument("listing", type=Path)
    put.add_argument("out", type=Path, nargs="?")
    a = parser.parse_args()
    print(split(a.file, a.directory, a.mib) if a.verb == "split" else join(a.listing, a.out))


if __name__ == "__main__":
    main()
