// Rows divided among the threads that torch computes with. A pool of our own would compete with torch's for the cores:
// waiting threads of both spin.
#pragma once
#include <cstdint>
#include <functional>

namespace wf {

// Calls f(begin, end, thread) for ranges of [0, count) that begin at multiples of `grain`, at most `threads` of them,
// on OpenMP's threads where the process has an OpenMP runtime that others can find, else on threads of its own.
void over_rows(int64_t count, int64_t grain, int threads, const std::function<void(int64_t, int64_t, int)>& f);

}  // namespace wf
