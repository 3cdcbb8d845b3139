#!/bin/sh
# Builds the C++ tests with sanitizers and runs them: address,undefined for the kernels, thread for the thread pool.
#   sh native/tests/run_sanitized.sh [address,undefined|thread [build directory [repeats]]]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
sanitize=${1:-address,undefined}
build=${2:-$root/build/sanitized-$(echo "$sanitize" | tr , -)}
cmake -S "$root" -B "$build" -DWF_BUILD_PYTHON=OFF -DWF_BUILD_TESTS=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DWF_SANITIZE="$sanitize" >/dev/null
cmake --build "$build" --target kernel_test threads_test >/dev/null
"$build/kernel_test" "${3:-50}"
"$build/threads_test"
