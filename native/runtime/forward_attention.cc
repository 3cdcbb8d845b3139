// The attention of a pass. A run of several rows rotates and stores its keys first, then its queries attend in blocks.
// A causal run of one row, the only one of its slot, needs no stage of its own: the task that attends its last
// positions stores the new one.
#include <algorithm>
#include <cmath>

#include "forward.h"

namespace wf {

namespace {
// Fewer where few tasks would leave threads waiting; in long runs the conversion of the keys counts, once a task.
constexpr int32_t kQueriesOfATask = 32;
int32_t queries_of_a_task(const Run& run) { return run.count <= 64 ? kQueriesOfATask / 2 : kQueriesOfATask; }
}  // namespace

void Pass::attention(Worker& worker, int32_t index, const Layer& layer) noexcept {
  SharedScratch& shared = c_.shared;
  store_first(worker, index, layer);
  mark(worker, Part::kRotate);

  int64_t tasks = 0;
  for (const Run& run : shared.runs) tasks += tasks_of(index, run);
  const Run* run = shared.runs.data();  // of the last task, which has the numbers from `before` on
  int64_t before = 0;
  worker.chunks(tasks, 1, 1, [&](int64_t begin, int64_t end) {  // a thread's tasks come in rising order
    for (int64_t i = begin; i < end; ++i) {
      for (; i - before >= tasks_of(index, *run); ++run) before += tasks_of(index, *run);
      attend(worker, index, layer, task_of(index, *run, static_cast<int32_t>(i - before)));
    }
  });
  mark(worker, Part::kAttend);

  TokenScratch& s = scratch(worker);
  each_row(worker, count_, [&](int32_t row) {
    quantize(s, row, attended(s, index, run_of(row), row), c_.config.q_width(), layer.attn_sub_norm, layer.attn_sub_eps,
             layer.o.rank > 0);
  });
  mark(worker, Part::kNorm);
  reduce(worker, {&layer.o});
  each_product(worker, layer.o.matrix.row_blocks, block_bytes(layer.o), [&](int64_t begin, int64_t end, Rows rows) {
    product(s, layer.o, begin, end, rows, shared.hidden.data(), shared.hidden_stride);
  });
  mark(worker, Part::kO);
}

void Pass::rotate(float* head, const float* norm, const TokenScratch& s, int32_t index, int32_t row) const noexcept {
  const int32_t head_dim = c_.config.head_dim;
  const int32_t ropes = c_.config.has_local_rope ? 2 : 1;
  const bool local = ropes == 2 && c_.config.windows[static_cast<size_t>(index)] != 0;
  const int64_t offset = (static_cast<int64_t>(row) * ropes + (local ? 1 : 0)) * (head_dim / 2);
  if (norm != nullptr) c_.kernels.rms_norm(head, norm, c_.config.rms_norm_eps, head_dim, head);
  Rope::rotate(head, head_dim, s.cosines.data() + offset, s.sines.data() + offset);
}

void Pass::store(const TokenScratch& s, int32_t index, const Layer& layer, const Run& run, int32_t row,
                 int32_t kv_head) noexcept {
  const int64_t offset = static_cast<int64_t>(row) * c_.shared.kv_stride + kv_head * c_.config.head_dim;
  float* key = c_.shared.k.data() + offset;
  rotate(key, layer.k_norm, s, index, row);
  run.cache->store(c_.kernels, index, kv_head, run.start + row - run.first, key, c_.shared.v.data() + offset);
}

void Pass::store_first(Worker& worker, int32_t index, const Layer& layer) noexcept {
  if (std::none_of(c_.shared.runs.begin(), c_.shared.runs.end(), [](const Run& run) { return run.store_first; }))
    return;
  const TokenScratch& s = scratch(worker);
  const int32_t head_dim = c_.config.head_dim;
  const auto rotate_row = [&](int32_t row) {
    const Run& run = run_of(row);
    if (!run.store_first) return;
    float* q = c_.shared.q.data() + static_cast<int64_t>(row) * c_.shared.q_stride;
    for (int32_t h = 0; h < c_.config.num_attention_heads; ++h) rotate(q + h * head_dim, layer.q_norm, s, index, row);
    for (int32_t h = 0; h < c_.config.num_key_value_heads; ++h) store(s, index, layer, run, row, h);
  };
  if (count_ > 1) {
    each_row(worker, count_, rotate_row);
  } else {  // in one thread, not in each: what is rotated is shared
    worker.chunks(1, 1, 1, [&](int64_t, int64_t) { rotate_row(0); });
  }
}

// The positions a query sees, and how they are shared out. By the numbers of positions alone: the sums of a query must
// not depend on what else is in the pass.
Pass::Range Pass::range_of(int32_t index, const Run& run, int32_t row) const noexcept {
  const int32_t window = c_.config.windows[static_cast<size_t>(index)];
  const int32_t last = run.seen(row);
  const int32_t first = window == 0 ? 0 : std::max(0, last - window);
  const int32_t even = (last - first + kMostSplits - 1) / kMostSplits;
  const int32_t keys = std::max(kSplitKeys, (even + kAttendTileKeys - 1) / kAttendTileKeys * kAttendTileKeys);
  return {first, last, (last - first + keys - 1) / keys, keys};
}

bool Pass::attends_in_blocks(int32_t index, const Run& run) const noexcept {
  return !run.single && c_.config.windows[static_cast<size_t>(index)] == 0 && attend_block_takes(c_.config.head_dim);
}

int32_t Pass::tasks_of(int32_t index, const Run& run) const noexcept {
  const int32_t heads = c_.config.num_key_value_heads;
  if (split_between_threads(run)) return heads * range_of(index, run, run.first).splits;
  if (attends_in_blocks(index, run)) {
    const int32_t queries = queries_of_a_task(run);
    return heads * ((run.count + queries - 1) / queries);
  }
  return heads * run.count;
}

Pass::Task Pass::task_of(int32_t index, const Run& run, int32_t number) const noexcept {
  const int32_t heads = c_.config.num_key_value_heads;
  const int32_t head = number % heads;
  const int32_t part = number / heads;
  if (split_between_threads(run)) return {&run, run.first, 1, head, part, false};
  if (!attends_in_blocks(index, run)) return {&run, run.first + part, 1, head, -1, false};
  // the last queries see the most keys: first, so that a thread does not start on them when the others are done
  const int32_t queries = queries_of_a_task(run);
  const int32_t blocks = (run.count + queries - 1) / queries;
  const int32_t first = (blocks - 1 - part) * queries;
  return {&run, run.first + first, std::min(queries, run.count - first), head, -1, true};
}

void Pass::attend_block(Worker& worker, int32_t index, const Task& task) noexcept {
  const int32_t head_dim = c_.config.head_dim;
  const int32_t group = c_.config.num_attention_heads / c_.config.num_key_value_heads;
  const int64_t stride = c_.shared.q_stride;
  const int64_t offset = task.row * stride + static_cast<int64_t>(task.kv_head) * group * head_dim;
  const KvView view = task.run->cache->view(index, task.kv_head);
  int32_t seen[kQueriesOfATask];
  for (int32_t i = 0; i < task.queries; ++i) seen[i] = task.run->seen(task.row + i);
  c_.kernels.attend_block(c_.shared.q.data() + offset, stride, task.queries, group, &view, head_dim, seen,
                          c_.config.attention_scale, own(worker).block.get(), c_.shared.attention.data() + offset,
                          stride);
}

void Pass::attend(Worker& worker, int32_t index, const Layer& layer, const Task& task) noexcept {
  if (task.block) {
    attend_block(worker, index, task);
    return;
  }
  const TokenScratch& s = scratch(worker);
  ThreadScratch& mine = own(worker);
  const Run& run = *task.run;
  const int32_t head_dim = c_.config.head_dim;
  const int32_t group = c_.config.num_attention_heads / c_.config.num_key_value_heads;
  const int32_t head = task.kv_head * group;
  const Range range = range_of(index, run, task.row);
  const int32_t begin = task.split < 0 ? 0 : task.split;
  const int32_t end = task.split < 0 ? range.splits : task.split + 1;

  const float* query = c_.shared.q.data() + static_cast<int64_t>(task.row) * c_.shared.q_stride + head * head_dim;
  if (!run.store_first) {
    std::copy(query, query + group * head_dim, mine.query.data());
    for (int32_t h = 0; h < group; ++h) rotate(mine.query.data() + h * head_dim, layer.q_norm, s, index, task.row);
    query = mine.query.data();
    if (end == range.splits) store(s, index, layer, run, task.row, task.kv_head);  // no other task reads this position
  }
  const KvView view = run.cache->view(index, task.kv_head);
  const float scale = c_.config.attention_scale;
  PartialScratch& partial = task.split < 0 ? mine.partial : c_.shared.partial;
  const int32_t place = task.split < 0 ? 0 : task.row;
  for (int32_t split = begin; split < end; ++split) {
    const int32_t first = range.first + split * range.split_keys;
    c_.kernels.attend(query, group, &view, head_dim, first, std::min(first + range.split_keys, range.last), scale,
                      partial.peaks(place, split, head), partial.totals(place, split, head),
                      partial.out(place, split, head));
  }
  if (task.split >= 0) return;
  merge(partial, 0, range.splits, head, head + group,
        c_.shared.attention.data() + static_cast<int64_t>(task.row) * c_.shared.q_stride);
}

void Pass::merge(PartialScratch& partial, int32_t row, int32_t splits, int32_t first, int32_t last,
                 float* out) const noexcept {
  const int32_t head_dim = c_.config.head_dim;
  for (int32_t head = first; head < last; ++head) {
    float peak = *partial.peaks(row, 0, head);
    for (int32_t split = 1; split < splits; ++split) peak = std::max(peak, *partial.peaks(row, split, head));
    float total = 0;
    float weights[kMostSplits];
    for (int32_t split = 0; split < splits; ++split) {
      weights[split] = std::exp(*partial.peaks(row, split, head) - peak);
      total += weights[split] * *partial.totals(row, split, head);
    }
    float* to = out + head * head_dim;
    std::fill(to, to + head_dim, 0.0f);
    for (int32_t split = 0; split < splits; ++split) {
      const float* from = partial.out(row, split, head);
      const float weight = weights[split] / total;
      for (int32_t d = 0; d < head_dim; ++d) to[d] += weight * from[d];
    }
  }
}

const float* Pass::attended(TokenScratch& s, int32_t index, const Run& run, int32_t row) noexcept {
  if (!split_between_threads(run)) return c_.shared.attention.data() + static_cast<int64_t>(row) * c_.shared.q_stride;
  float* out = s.normed.data() + static_cast<int64_t>(row) * c_.config.q_width();
  merge(c_.shared.partial, row, range_of(index, run, row).splits, 0, c_.config.num_attention_heads, out);
  return out;
}

}  // namespace wf
