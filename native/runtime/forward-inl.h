// How the work of a pass is shared out between threads.
#pragma once
#include <algorithm>

#include "forward.h"

namespace wf {

template <typename F>
void Pass::each_row(Worker& worker, int32_t rows, F&& f) const noexcept {
  if (count_ == 1) {
    f(0);
    return;
  }
  worker.chunks(rows, 1, rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) f(static_cast<int32_t>(row));
  });
}

template <typename F>
void Pass::each_block(Worker& worker, int64_t blocks, int64_t bytes, F&& f) const noexcept {
  // For one token a piece is at most some microseconds of memory traffic, so that a longer wait means that a core was
  // taken away.
  constexpr int64_t kMostBytes = 128 << 10;
  const int64_t most = count_ == 1 ? std::max<int64_t>(1, kMostBytes / std::max<int64_t>(bytes, 1)) : blocks;
  worker.chunks(blocks, count_ == 1 ? 1 : kPanelGrain, most, f);
}

}  // namespace wf
