#!/bin/sh
# Builds kernel_test for aarch64 with a cross compiler and runs it under user-mode emulation.
#   sh native/tests/run_neon_emulated.sh [build directory [repeats]]
# Needs aarch64-linux-gnu-g++ and qemu-aarch64-static (Debian: g++-aarch64-linux-gnu, qemu-user-static).
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/build/neon}
cmake -S "$root" -B "$build" -DWF_BUILD_PYTHON=OFF -DWF_BUILD_TESTS=ON \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static >/dev/null
cmake --build "$build" --target kernel_test >/dev/null
exec qemu-aarch64-static "$build/kernel_test" "${2:-20}"
