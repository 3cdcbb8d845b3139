#!/bin/sh
# Builds kernel_test for aarch64 with a cross compiler and runs it under user-mode emulation: every table on a
# processor that has all instructions, and the choice of tables on two that lack some.
#   sh native/tests/run_neon_emulated.sh [build directory [repeats]]
# Needs aarch64-linux-gnu-g++ and qemu-aarch64-static (Debian: g++-aarch64-linux-gnu, qemu-user-static).
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/build/neon}
cmake -S "$root" -B "$build" -DWF_BUILD_PYTHON=OFF -DWF_BUILD_TESTS=ON \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static >/dev/null
cmake --build "$build" --target kernel_test >/dev/null

# run PROCESSOR REPEATS TABLES: the test passes and runs exactly the tables named, best first.
run() {
  echo "$1:"
  output=$(qemu-aarch64-static -cpu "$1" "$build/kernel_test" "$2") || { echo "$output"; exit 1; }
  echo "$output"
  tables=$(echo "$output" | sed -n 's/: run on .*//p' | tr '\n' ' ')
  [ "$tables" = "$3 " ] || { echo "expected the tables $3, found $tables"; exit 1; }
}
run max "${2:-20}" "neon_i8mm neon_dotprod reference"
run cortex-a76 1 "neon_dotprod reference"
run cortex-a72 1 "reference"
