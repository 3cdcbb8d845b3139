"""Damages files and reads them in Python: the reader succeeds, or refuses with a FormatError or InputError that speaks.

Anything else is a find: another exception, more than a second of processor time, more memory than the files' size and
64 MiB, a crash. The damaged files of a find stay, and cases are a function of the seed, so it can be seen again.

    python tests/fuzz/fuzz_readers.py gguf --seconds 60 --seed 1
    python tests/fuzz/fuzz_readers.py gguf --again build/fuzz/finds/gguf-1-4711       # one directory

Every 32nd case is traced; one that reaches lines of the package in an order not seen before becomes a seed itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from mutations import mutation_of
from readers import READERS, Reader

from wrinklefree.errors import InputError

SOURCE = str(Path(sys.modules["wrinklefree.errors"].__file__ or "").parent)
MAX_SECONDS = 1.0
HARD_SECONDS = 10  # of processor time: the process ends, and whoever started it sees why
SPARE_BYTES = 64 << 20
TRACE_EVERY = 32
MEASURE_EVERY = 256
MAX_SEEDS = 400
MAX_FINDS = 20


@dataclass
class Outcome:
    """What a run has seen."""

    cases: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    edges: set[tuple[int, int, int]] = field(default_factory=set)
    corpus: int = 0
    finds: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        names = ("cases", "accepted", "refused", "corpus", "finds")
        numbers = {"seconds": round(self.seconds, 2), "slowest_seconds": round(self.slowest_seconds, 3)}
        return {**{name: getattr(self, name) for name in names}, **numbers, "edges": len(self.edges)}


def tracer(edges: set[tuple[int, int, int]]) -> Callable[[FrameType, str, Any], Any]:
    """Return a trace function that adds (code, line before, line) of the package to ``edges``."""

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(SOURCE):
            return None
        name, before = hash((code.co_filename, code.co_firstlineno)), 0

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal before
            if event == "line":
                edges.add((name, before, frame.f_lineno))
                before = frame.f_lineno
            return line

        return line

    return enter


def limit_memory(files_bytes: int) -> None:
    """Let the process grow by what a case may take, and no more; a limit set before is lifted."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + SPARE_BYTES + 2 * files_bytes + (64 << 20)  # the harness's own corpus and Python's arenas
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def read_once(reader: Reader, directory: Path) -> str:
    """Read a directory; return "accepted", the message of a refusal, or raise what must not come out."""
    try:
        reader.read(directory)
    except InputError as error:
        message = str(error)
        if not message or not message.isprintable():
            raise AssertionError(f"an error whose message cannot be shown: {message!r}") from error
        return message
    return "accepted"


class Fuzzer:
    """Runs the cases of one reader in one directory."""

    def __init__(self, name: str, seed: int, work: Path, keep: Path | None) -> None:
        self.name, self.seed, self.keep = name, seed, keep
        self.reader = READERS[name]
        self.outcome = Outcome()
        self.target = work / "case"
        seeds = work / "seeds"
        seeds.mkdir(parents=True)
        self.reader.seeds(seeds)
        self.corpus = [
            {path.name: path.read_bytes() for path in sorted(made.iterdir()) if path.is_file()}
            for made in sorted(seeds.iterdir())
        ]
        for files in self.corpus:  # good files are accepted, and what is imported late is imported
            self._lay(files)
            found = read_once(self.reader, self.target)
            assert found == "accepted" or "sliding window" in found, f"a seed of {name} is refused: {found}"
        self.largest = max(sum(map(len, files.values())) for files in self.corpus)

    def run(self, cases: int, seconds: float) -> Outcome:
        """Run up to ``cases`` cases in up to ``seconds``."""
        start = time.monotonic()
        for case in range(cases):
            if time.monotonic() - start > seconds or len(self.outcome.finds) >= MAX_FINDS:
                break
            self._run_case(case)
        self.outcome.seconds = time.monotonic() - start
        self.outcome.corpus = len(self.corpus)
        return self.outcome

    def _run_case(self, case: int) -> None:
        rng = Random(f"{self.name}/{self.seed}/{case}")
        files = self._damaged(rng)
        self._lay(files)
        traced, measured = case % TRACE_EVERY == 0, case % MEASURE_EVERY == 1
        new: set[tuple[int, int, int]] = set()
        signal.setitimer(signal.ITIMER_PROF, HARD_SECONDS)
        begin = time.process_time()
        try:
            if traced:
                sys.settrace(tracer(new))
            elif measured:
                tracemalloc.start()
            found = read_once(self.reader, self.target)
            sys.settrace(None)
            taken = time.process_time() - begin
            if measured:
                self._check_memory(files)
            self.outcome.accepted += found == "accepted"
            self.outcome.refused += found != "accepted"
            if taken > MAX_SECONDS * (10 if traced or measured else 1):
                raise AssertionError(f"took {taken:.2f} s of processor time ({found[:200]})")
            if not traced and not measured:
                self.outcome.slowest_seconds = max(self.outcome.slowest_seconds, taken)
        except BaseException as error:
            sys.settrace(None)
            if isinstance(error, KeyboardInterrupt):
                raise
            self._find(case, error)
        finally:
            tracemalloc.stop()
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.outcome.cases += 1
        if new - self.outcome.edges:
            self.outcome.edges |= new
            if len(self.corpus) < MAX_SEEDS and sum(map(len, files.values())) <= 2 * self.largest:
                self.corpus.append(files)

    def _check_memory(self, files: dict[str, bytes]) -> None:
        peak, most = tracemalloc.get_traced_memory()[1], sum(map(len, files.values())) + SPARE_BYTES
        if peak > most:
            raise AssertionError(f"took {peak} bytes of memory, {most} are allowed")

    def _damaged(self, rng: Random) -> dict[str, bytes]:
        files = dict(rng.choice(self.corpus))
        names = [name for name in files if not self.reader.files or name in self.reader.files]
        for _ in range(2 if rng.random() < 0.1 else 1):
            name = rng.choice(names)
            if rng.random() < 0.005 and len(files) > 1:
                files.pop(name, None)
                return files
            files[name] = mutation_of(name)(files[name], rng)
        return files

    def _lay(self, files: dict[str, bytes]) -> None:
        if not self.target.exists():
            self.target.mkdir()
            self._laid: dict[str, bytes] = {}
        for name in self._laid.keys() - files.keys():
            (self.target / name).unlink()
        for name, data in files.items():
            if self._laid.get(name) is not data:
                # A new file: a mapping of the one before may still be held.
                path = f"{self.target}/{name}"
                if name in self._laid:
                    os.unlink(path)  # noqa: PTH108  (Path costs as much as some of the readers)
                with open(path, "wb") as stream:  # noqa: PTH123
                    stream.write(data)
        self._laid = files

    def _find(self, case: int, error: BaseException) -> None:
        place = next(iter(_places(error)), "?")
        what = f"{type(error).__name__} at {place}: {str(error)[:200]!r}"
        if any(known.startswith(f"{type(error).__name__} at {place}:") for known in self.outcome.finds):
            return
        self.outcome.finds.append(what)
        print(f"{self.name}: case {case} of seed {self.seed}: {what}", file=sys.stderr)
        traceback.print_exception(error, limit=-6, file=sys.stderr)
        if self.keep is not None:
            kept = self.keep / f"{self.name}-{self.seed}-{case}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(self.target, kept)
            print(f"kept: {kept}", file=sys.stderr)


def _places(error: BaseException) -> Iterator[str]:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(SOURCE):
            yield f"{Path(frame.filename).name}:{frame.lineno}"


def fuzz(
    name: str, cases: int, seconds: float, seed: int = 0, keep: Path | None = None, limited: bool = True
) -> Outcome:
    """Run a reader's cases in a temporary directory, in memory where there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as work:
        fuzzer = Fuzzer(name, seed, Path(work), keep)
        if limited:
            limit_memory(fuzzer.largest)
        return fuzzer.run(cases, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="+", choices=READERS, metavar="reader", help=", ".join(READERS))
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--cases", type=int, default=1 << 62)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz/finds"), help="where the files of finds go")
    parser.add_argument("--again", type=Path, help="read this directory once, with the trace of whatever it raises")
    parser.add_argument("--no-memory-limit", action="store_true", help="for builds with the address sanitizer")
    options = parser.parse_args()
    if options.again:
        print(read_once(READERS[options.readers[0]], options.again))
        return 0
    options.keep.mkdir(parents=True, exist_ok=True)
    finds = 0
    for name in options.readers:
        limited = not options.no_memory_limit
        outcome = fuzz(name, options.cases, options.seconds, options.seed, options.keep, limited)
        print(json.dumps({"reader": name, "seed": options.seed, **outcome.to_json()}), flush=True)
        finds += len(outcome.finds)
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
