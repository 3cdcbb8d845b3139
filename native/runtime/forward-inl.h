// How the work of a pass is shared out between threads.
#pragma once
#include <algorithm>

#include "forward.h"

namespace wf {

// Passes of up to so many rows leave each thread its own part of every product and its own rows, since lines that move
// between cores and streams that begin anew cost more than threads that end at different times: a pass of 8 rows of the
// 135M shape on two threads took 4.4 ms when both drew pieces of shrinking size, 3.8 ms since.
constexpr int32_t kShareRows = 32;

inline int64_t block_bytes(const Linear& linear) {
  return row_block_bytes(linear.matrix.layout, linear.matrix.column_blocks);
}

// Many rows: a thread keeps its own through all products, so that what one computes seldom has to move to another
// core. Each thread reads all weights then, which pays for layers that stay in its cache, and otherwise for so many
// rows that reading is little beside multiplying.
inline bool Pass::rows_stay(const Worker& worker) const noexcept {
  constexpr int32_t kLeastRows = 16, kManyRows = 128;
  constexpr int64_t kCachedBytes = 4 << 20;
  const Layer& layer = c_.weights.layers.front();
  int64_t bytes = 0;
  for (const Linear* linear : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
    bytes += block_bytes(*linear) * linear->matrix.row_blocks;
  return worker.count() > 1 && count_ >= (bytes <= kCachedBytes ? kLeastRows : kManyRows) * worker.count();
}

inline Pass::Rows Pass::rows_of(const Worker& worker) const noexcept {
  constexpr int32_t kTileRows = 8;
  if (!rows_stay(worker)) return {0, count_};
  const int32_t each = ((count_ + worker.count() - 1) / worker.count() + kTileRows - 1) / kTileRows * kTileRows;
  const int32_t first = std::min(count_, each * worker.index());
  return {first, std::min(each, count_ - first)};
}

template <typename F>
void Pass::each_row(Worker& worker, int32_t rows, F&& f) const noexcept {
  if (count_ == 1) {
    f(0);
    return;
  }
  if (rows == count_ && rows_stay(worker)) {
    const Rows mine = rows_of(worker);
    for (int32_t row = mine.first; row < mine.first + mine.count; ++row) f(row);
    worker.barrier();
    return;
  }
  const auto all = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) f(static_cast<int32_t>(row));
  };
  if (count_ <= kShareRows) return worker.shares(rows, 1, all);
  worker.chunks(rows, 1, rows, all);
}

template <typename F>
void Pass::each_block(Worker& worker, int64_t blocks, int64_t bytes, F&& f) const noexcept {
  // For one token a piece is at most a tenth of a millisecond of memory traffic, so that a longer wait means that a
  // core was taken away; much smaller ones cost a tenth of the speed, since each is a stream that begins anew.
  constexpr int64_t kMostBytes = 4 << 20;
  if (count_ > 1 && count_ <= kShareRows) return worker.shares(blocks, kPanelGrain, f);
  const int64_t most = count_ == 1 ? std::max<int64_t>(1, kMostBytes / std::max<int64_t>(bytes, 1)) : blocks;
  worker.chunks(blocks, count_ == 1 ? 1 : kPanelGrain, most, f);
}

template <typename F>
void Pass::each_product(Worker& worker, int64_t blocks, int64_t bytes, F&& f) const noexcept {
  const Rows rows = rows_of(worker);
  if (!rows_stay(worker)) {
    each_block(worker, blocks, bytes, [&](int64_t begin, int64_t end) { f(begin, end, rows); });
    return;
  }
  if (rows.count > 0) f(int64_t{0}, blocks, rows);
  worker.barrier();
}

}  // namespace wf
