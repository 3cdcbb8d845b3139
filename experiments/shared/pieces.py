"""Files cut into pieces that a transfer with a size limit takes, and put together again, checked.

python pieces.py split FILE_OR_DIRECTORY PIECES [--mib 15]
python pieces.py join PIECES/NAME.pieces.json [OUT]

PIECES gets NAME.000, NAME.001, ... and NAME.pieces.json with the SHA-256 of every piece and of every file. A piece that
is there already with the right content is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wrinklefree.artifact.files import sha256


def split(source: Path, directory: Path, mib: float = 15.0) -> Path:
    """Cut a file, or all files below a directory, into pieces of at most ``mib`` MiB; return the list of them."""
    files = [path for path in sorted(source.rglob("*")) if path.is_file()] if source.is_dir() else [source]
    return split_files(source if source.is_dir() else source.parent, files, directory / source.name, mib)


def split_files(root: Path, files: Iterable[Path], target: Path, mib: float = 15.0) -> Path:
    """Cut ``files`` below ``root`` into TARGET.000, ...; return TARGET.pieces.json."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size, number, listed = max(1, int(mib * 2**20)), 0, []
    for file in files:
        whole, pieces = hashlib.sha256(), list[dict[str, str | int]]()
        with file.open("rb") as source:
            while data := source.read(size):
                name, digest = f"{target.name}.{number:03d}", hashlib.sha256(data).hexdigest()
                if _hash(target.with_name(name)) != digest:
                    target.with_name(name).write_bytes(data)
                whole.update(data)
                pieces.append({"name": name, "bytes": len(data), "sha256": digest})
                number += 1
        listed.append({"path": file.relative_to(root).as_posix(), "sha256": whole.hexdigest(), "pieces": pieces})
    listing = target.with_name(f"{target.name}.pieces.json")
    listing.write_text(json.dumps({"files": listed}, indent=1) + "\n", encoding="utf-8")
    return listing


def join(listing: Path, out: Path | None = None) -> Path:
    """Put the pieces beside ``listing`` together: the one file at ``out`` (or beside them), several below it.

    Raises: SystemExit naming every piece that is missing or damaged; then nothing is written.
    """
    files: list[dict[str, Any]] = json.loads(listing.read_text(encoding="utf-8"))["files"]
    pieces = [piece for file in files for piece in file["pieces"]]
    wrong = [piece["name"] for piece in pieces if _hash(listing.parent / piece["name"]) != piece["sha256"]]
    if wrong:
        raise SystemExit(f"{listing}: missing or damaged: {', '.join(wrong)}; bring these again")
    name = listing.name.removesuffix(".pieces.json")
    if len(files) == 1 and files[0]["path"] == name:
        return _joined(listing, files[0], out or listing.parent / name)
    directory = out or listing.parent / f"{name}.joined"
    for file in files:
        target = (directory / file["path"]).resolve()
        if not target.is_relative_to(directory.resolve()):
            raise SystemExit(
                f"{listing}: names {file['path']}, outside of {directory}; it was not made by this program"
            )
        if _hash(target) != file["sha256"]:
            target.parent.mkdir(parents=True, exist_ok=True)
            _joined(listing, file, target)
    return directory


def _joined(listing: Path, file: dict[str, Any], out: Path) -> Path:
    partial = out.with_name(f".{out.name}.partial")
    with partial.open("wb") as target:
        for piece in file["pieces"]:
            with (listing.parent / piece["name"]).open("rb") as source:
                shutil.copyfileobj(source, target)
    if _hash(partial) != file["sha256"]:
        partial.unlink()
        raise SystemExit(f"{listing}: the pieces of {file['path']} are whole, but together they are another file")
    partial.replace(out)
    return out


def _hash(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    cut = verbs.add_parser("split")
    cut.add_argument("source", type=Path)
    cut.add_argument("directory", type=Path)
    cut.add_argument("--mib", type=float, default=15.0)
    put = verbs.add_parser("join")
    put.add_argument("listing", type=Path)
    put.add_argument("out", type=Path, nargs="?")
    a = parser.parse_args()
    print(split(a.source, a.directory, a.mib) if a.verb == "split" else join(a.listing, a.out))


if __name__ == "__main__":
    main()
