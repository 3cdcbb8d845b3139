#!/bin/sh
# Builds the C++ tests with one sanitizer and runs them, the loader on packed directories too. Where Python has
# nanobind, the loader's fuzzer runs on an extension built with the address sanitizer. One at a time: instrumented for
# two, the kernel files take many minutes to compile.
#   sh native/tests/run_sanitized.sh [address|undefined|thread [build directory [repeats [fuzz seconds]]]]
# PYTHON names the interpreter; without one that has NumPy and safetensors no directories are written.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
sanitize=${1:-address}
build=${2:-$root/build/sanitized-$sanitize}
repeats=${3:-20}
seconds=${4:-20}
python=${PYTHON:-python3}
export UBSAN_OPTIONS=print_stacktrace=1

with_python=OFF
if [ "$sanitize" = address ] && nanobind=$("$python" -m nanobind --cmake_dir 2>/dev/null); then
  with_python=ON
fi
cmake -S "$root" -B "$build" -DWF_BUILD_PYTHON=$with_python -DWF_BUILD_TESTS=ON \
  -DCMAKE_BUILD_TYPE=Release -DWF_SANITIZE="$sanitize" \
  -DPython_EXECUTABLE="$(command -v "$python")" -Dnanobind_DIR="${nanobind:-}" >/dev/null
targets="kernel_test threads_test model_test"
[ $with_python = OFF ] || targets="$targets _native"
# shellcheck disable=SC2086
cmake --build "$build" --parallel "$(getconf _NPROCESSORS_ONLN)" --target $targets >/dev/null

toys="$build/toys"
set --
if PYTHONPATH="$root/src:$root/tests/engine" "$python" - "$toys" <<'PYTHON'
import sys
from pathlib import Path

from toy_models import make_toy

for name in ("llama_row_odd_sizes", "qwen3", "dense_row", "dense_group_128", "q6_head", "untied_q4_head"):
    make_toy(Path(sys.argv[1]) / name, name)
PYTHON
then
  set -- "$toys"/*
fi
"$build/kernel_test" "$repeats"
"$build/threads_test"
"$build/model_test" "$@"

[ $with_python = ON ] || exit 0
# The package as it is in src, with the extension of this build.
package="$build/package/wrinklefree"
mkdir -p "$package"
for file in "$root"/src/wrinklefree/*; do
  case $file in *.so | *__pycache__) ;; *) ln -sfn "$file" "$package/" ;; esac
done
cp "$build"/_native.*so "$package/"
# Python itself frees little at its end, so leaks are not looked for; the loader frees by destructors.
ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH="$build/package" \
  LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libstdc++.so.6)" \
  "$python" "$root/tests/fuzz/fuzz_readers.py" loader --no-memory-limit --seconds "$seconds" --keep "$build/finds"
