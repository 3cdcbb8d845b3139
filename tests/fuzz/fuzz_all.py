"""Runs every fuzz target for a while and prints one table; ends with 1 when one of them found something.

The C++ targets (native/fuzz) are built with clang, its libFuzzer and the address and undefined-behaviour sanitizers;
without clang they are left out, and the table says so. The Python readers follow (fuzz_readers.py).

    python tests/fuzz/fuzz_all.py --seconds 60 [--only gguf header] [--build build/fuzz]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from readers import READERS

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ("config", "header", "directory", "tensors", "rows", "calls")
SECONDS_PER_INPUT = 5
MAX_INPUT_BYTES = {"config": 4096, "header": 4096, "calls": 1024, "rows": 4096}  # a whole model: 32,768


@dataclass(frozen=True)
class Row:
    """What one target did. ``edges``: counters of libFuzzer, or orders of two lines of the package."""

    target: str
    cases: int
    seconds: float
    edges: int
    finds: int
    note: str = ""

    def __str__(self) -> str:
        rate = self.cases / self.seconds if self.seconds else 0
        numbers = f"{self.cases:12,}{self.seconds:9.0f}{rate:10,.0f}{self.edges:8,}{self.finds:7}"
        return f"{self.target:24}{numbers}  {self.note}".rstrip()


def clang() -> str | None:
    """Return a clang++ that links libFuzzer, or None."""
    names = ["clang++", *(f"clang++-{version}" for version in range(22, 13, -1))]
    for name in names:
        if shutil.which(name) is None:
            continue
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory) / "empty.cc"
            source.write_text(
                'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }\n'
            )
            command = [name, "-fsanitize=fuzzer,address,undefined", str(source), "-o", f"{directory}/empty"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return name
    return None


def build_native(build: Path, compiler: str) -> None:
    """Build the C++ targets and write their seeds."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=tools)
    if cmake is None:
        raise SystemExit("the C++ targets need cmake: pip install cmake")
    options = [f"-DCMAKE_CXX_COMPILER={compiler}", "-DCMAKE_BUILD_TYPE=Release"]
    options += ["-DWF_BUILD_PYTHON=OFF", "-DWF_BUILD_FUZZERS=ON", "-DWF_SANITIZE=address,undefined"]
    targets = [f"fuzz_{name}" for name in NATIVE]
    subprocess.run([cmake, "-S", ROOT, "-B", build, *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([cmake, "--build", build, "--target", *targets], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, ROOT / "native" / "fuzz" / "seeds.py", build / "seeds"], check=True)


def run_native(target: str, seconds: int, build: Path, finds: Path) -> Row:
    """Run a C++ target; what it learns stays in the build directory for the next time."""
    corpus = build / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    before = set(finds.iterdir())
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as work:
        command = [build / f"fuzz_{target}", f"-max_total_time={seconds}", "-print_final_stats=1"]
        command += [
            f"-timeout={SECONDS_PER_INPUT}",
            "-rss_limit_mb=2048",
            f"-max_len={MAX_INPUT_BYTES.get(target, 32_768)}",
        ]
        command += [f"-dict={ROOT / 'native' / 'fuzz' / 'keys.dict'}", f"-artifact_prefix={finds}/native-{target}-"]
        start = time.monotonic()
        done = subprocess.run(
            [str(word) for word in (*command, corpus, build / "seeds" / target)],
            env={**os.environ, "TMPDIR": work},
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
        )
    executed = re.findall(r"stat::number_of_executed_units: (\d+)", done.stderr)
    edges = re.findall(r"cov: (\d+)", done.stderr)
    new = set(finds.iterdir()) - before
    if done.returncode != 0:
        print(done.stderr[-6000:], file=sys.stderr)
    return Row(
        f"C++ {target}",
        int(executed[-1]) if executed else 0,
        time.monotonic() - start,
        int(edges[-1]) if edges else 0,
        max(len(new), int(done.returncode != 0)),
    )


def run_python(name: str, seconds: int, seed: int, finds: Path) -> Row:
    """Run a Python reader's target in a process of its own."""
    script = Path(__file__).with_name("fuzz_readers.py")
    command = [sys.executable, script, name, "--seconds", seconds, "--seed", seed, "--keep", finds]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stderr[-6000:], file=sys.stderr)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):  # the process died: a crash, or more processor time than any case may take
        return Row(f"Python {name}", 0, seconds, 0, 1, f"ended with {done.returncode}")
    return Row(f"Python {name}", found["cases"], found["seconds"], found["edges"], len(found["finds"]))


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield what each target asked for did."""
    finds = options.build / "finds"
    finds.mkdir(parents=True, exist_ok=True)
    native = [name for name in NATIVE if not options.only or name in options.only]
    compiler = clang() if native else None
    if native and compiler is None:
        print("C++ targets: left out, no clang with libFuzzer was found (Debian: clang and libclang-rt-dev)")
    elif compiler is not None:
        build_native(options.build, compiler)
        for name in native:
            yield run_native(name, options.seconds, options.build, finds)
    for name in READERS:
        if not options.only or name in options.only:
            yield run_python(name, options.seconds, options.seed, finds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the Python targets")
    parser.add_argument("--only", nargs="*", default=[], choices=[*NATIVE, *READERS])
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "fuzz")
    options = parser.parse_args()
    options.build = options.build.resolve()
    print(f"{'target':24}{'executions':>12}{'seconds':>9}{'per s':>10}{'edges':>8}{'finds':>7}", flush=True)
    finds = 0
    for row in rows(options):
        print(row, flush=True)
        finds += row.finds
    if finds:
        print(f"{finds} finds; what was read lies in {options.build / 'finds'}")
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
