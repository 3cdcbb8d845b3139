#!/bin/sh
# Builds kernel_test with sanitizers and runs it.
#   sh native/tests/run_sanitized.sh [address,undefined|thread [build directory [repeats]]]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
sanitize=${1:-address,undefined}
build=${2:-$root/build/sanitized-$(echo "$sanitize" | tr , -)}
cmake -S "$root" -B "$build" -DWF_BUILD_PYTHON=OFF -DWF_BUILD_TESTS=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DWF_SANITIZE="$sanitize" >/dev/null
cmake --build "$build" --target kernel_test >/dev/null
exec "$build/kernel_test" "${3:-50}"
