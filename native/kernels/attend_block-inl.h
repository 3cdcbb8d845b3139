// Attention for many queries at once, written once over the vector type `V` (see float_ops-inl.h).
//
// A block of kAttendBlockRows rows (a row: one query of one head) meets the keys in tiles of kTileKeys. A tile of keys
// is converted and transposed once, so that a score needs no sum across a register; its values are converted once. The
// softmax is kept up to date tile by tile as in attend-inl.h.
#include "kernels/attend-inl.h"

namespace wf {
namespace {

struct AttendBlock {
  float* q;       // scaled, [row][head_dim]
  float* out;     // [row][head_dim]
  float* keys;    // [head_dim][kTileKeys]
  float* values;  // [kTileKeys][head_dim]
  float peak[kAttendBlockRows], total[kAttendBlockRows];
  int32_t visible[kAttendBlockRows];
  int32_t rows, head_dim;
};

// kLanes elements of the row of position t, times its scale when there is one.
template <class Cache>
WF_ALWAYS_INLINE F scaled_part(const Cache* memory, const float* scales, int64_t stride, int32_t t, int32_t d) {
  const F part = widen(memory + t * stride + d);
  return sizeof(Cache) == 1 ? V::mul(part, V::set1(scales[t])) : part;
}

// keys[d][t] and values[t][d] of `count` positions from `first` on. Keys are filled up with zeros to whole registers;
// what lies behind them is never read.
template <class Cache>
inline void load_tile(AttendBlock& s, const KvView* kv, int32_t first, int32_t count) {
  const Cache* k = static_cast<const Cache*>(kv->k) + first * kv->stride;
  const Cache* v = static_cast<const Cache*>(kv->v) + first * kv->stride;
  const float* k_scales = kv->k_scales ? kv->k_scales + first : nullptr;
  const float* v_scales = kv->v_scales ? kv->v_scales + first : nullptr;
  for (int32_t t = 0; t < count; t += kLanes)
    for (int32_t d = 0; d < s.head_dim; d += kLanes) {
      F block[kLanes];
      for (int32_t i = 0; i < kLanes; ++i)
        block[i] = t + i < count ? scaled_part(k, k_scales, kv->stride, t + i, d) : V::zero();
      V::transpose(block);
      for (int32_t i = 0; i < kLanes; ++i) V::store(s.keys + (d + i) * kTileKeys + t, block[i]);
    }
  for (int32_t t = 0; t < count; ++t)
    for (int32_t d = 0; d < s.head_dim; d += kLanes)
      V::store(s.values + t * s.head_dim + d, scaled_part(v, v_scales, kv->stride, t, d));
}

// Scores of R rows with N registers of keys.
template <int32_t R, int32_t N>
WF_ALWAYS_INLINE void score_tile(const AttendBlock& s, int32_t row, int32_t t, float* weights) {
  F sums[R][N];
  for (int32_t r = 0; r < R; ++r)
    for (int32_t j = 0; j < N; ++j) sums[r][j] = V::zero();
  const float* q = s.q + row * s.head_dim;
  for (int32_t d = 0; d < s.head_dim; ++d) {
    F part[R];
    for (int32_t r = 0; r < R; ++r) part[r] = V::set1(q[r * s.head_dim + d]);
    for (int32_t j = 0; j < N; ++j) {
      const F keys = V::load(s.keys + d * kTileKeys + t + j * kLanes);
      for (int32_t r = 0; r < R; ++r) sums[r][j] = V::fma(keys, part[r], sums[r][j]);
    }
  }
  for (int32_t r = 0; r < R; ++r)
    for (int32_t j = 0; j < N; ++j) V::store(weights + r * kTileKeys + t + j * kLanes, sums[r][j]);
}

// Adds `count` values under the weights to N registers of R rows' mixtures.
template <int32_t R, int32_t N>
WF_ALWAYS_INLINE void mix_tile(const AttendBlock& s, int32_t row, int32_t d, int32_t count, const float* weights) {
  F sums[R][N];
  float* out = s.out + row * s.head_dim + d;
  for (int32_t r = 0; r < R; ++r)
    for (int32_t j = 0; j < N; ++j) sums[r][j] = V::load(out + r * s.head_dim + j * kLanes);
  for (int32_t t = 0; t < count; ++t) {
    F weight[R];
    for (int32_t r = 0; r < R; ++r) weight[r] = V::set1(weights[r * kTileKeys + t]);
    for (int32_t j = 0; j < N; ++j) {
      const F values = V::load(s.values + t * s.head_dim + d + j * kLanes);
      for (int32_t r = 0; r < R; ++r) sums[r][j] = V::fma(values, weight[r], sums[r][j]);
    }
  }
  for (int32_t r = 0; r < R; ++r)
    for (int32_t j = 0; j < N; ++j) V::store(out + r * s.head_dim + j * kLanes, sums[r][j]);
}

// Scores to weights for one row; `seen` of the tile's positions are for it.
inline void weigh_row(AttendBlock& s, int32_t row, int32_t seen, float* weights) {
  for (int32_t t = seen > 0 ? seen : 0; t < kTileKeys; ++t) weights[t] = kNoScore;
  if (seen > 0) raise_peak(weights, s.head_dim, s.peak + row, s.total + row, s.out + row * s.head_dim);
  F sums = V::zero();
  for (int32_t t = 0; t < seen; t += kLanes) {
    const F weight = exp_up_to_88(V::sub(V::load(weights + t), V::set1(s.peak[row])));
    V::store(weights + t, weight);
    sums = V::add(sums, weight);  // behind `seen` e^-87, which changes no sum of 1 or more
  }
  s.total[row] += V::sum(sums);
  for (int32_t t = seen > 0 ? seen : 0; t < kTileKeys; ++t) weights[t] = 0.0f;
}

// R rows at a time, from `row` on, with the tile of `count` keys at position `first`.
template <int32_t R>
inline void attend_rows(AttendBlock& s, int32_t row, int32_t first, int32_t count) {
  alignas(64) float weights[R * kTileKeys];
  for (; row + R <= s.rows; row += R) {
    const int32_t seen = min_of(count, s.visible[row + R - 1] - first);  // later rows see no fewer
    if (seen <= 0) continue;
    int32_t t = 0;
    for (; t + 3 * kLanes < seen; t += 4 * kLanes) score_tile<R, 4>(s, row, t, weights);
    for (; t < seen; t += kLanes) score_tile<R, 1>(s, row, t, weights);
    for (int32_t r = 0; r < R; ++r)
      weigh_row(s, row + r, min_of(seen, s.visible[row + r] - first), weights + r * kTileKeys);
    int32_t d = 0;
    for (; d + 4 * kLanes <= s.head_dim; d += 4 * kLanes) mix_tile<R, 4>(s, row, d, seen, weights);
    for (; d + kLanes <= s.head_dim; d += kLanes) mix_tile<R, 1>(s, row, d, seen, weights);
  }
  if constexpr (R > 1) {
    if (row < s.rows) attend_rows<R - 1>(s, row, first, count);
  }
}

template <class Cache>
inline void attend_block_of(AttendBlock& s, const KvView* kv) {
  const int32_t longest = s.visible[s.rows - 1];
  for (int32_t first = 0; first < longest; first += kTileKeys) {
    const int32_t count = min_of(kTileKeys, longest - first);
    load_tile<Cache>(s, kv, first, count);
    attend_rows<V::kAttendRows>(s, 0, first, count);
  }
}

void attend_block(const float* q, int64_t q_stride, int32_t queries, int32_t group, const KvView* kv, int32_t head_dim,
                  const int32_t* seen, float scale, float* scratch, float* out, int64_t out_stride) {
  AttendBlock s;
  s.head_dim = head_dim;
  s.q = scratch;
  s.out = s.q + kAttendBlockRows * head_dim;
  s.keys = s.out + kAttendBlockRows * head_dim;
  s.values = s.keys + kTileKeys * head_dim;
  const int32_t all_rows = queries * group;
  for (int32_t first_row = 0; first_row < all_rows; first_row += kAttendBlockRows) {
    s.rows = min_of(kAttendBlockRows, all_rows - first_row);
    for (int32_t r = 0; r < s.rows; ++r) {
      const int32_t query = (first_row + r) / group, head = (first_row + r) % group;
      const float* from = q + query * q_stride + head * head_dim;
      for (int32_t d = 0; d < head_dim; d += kLanes) {
        V::store(s.q + r * head_dim + d, V::mul(V::load(from + d), V::set1(scale)));
        V::store(s.out + r * head_dim + d, V::zero());
      }
      s.visible[r] = seen[query];
      s.peak[r] = kNoScore;
      s.total[r] = 0.0f;
    }
    if (kv->type == KvType::kF16) attend_block_of<uint16_t>(s, kv);
    if (kv->type == KvType::kF32) attend_block_of<float>(s, kv);
    if (kv->type == KvType::kI8) attend_block_of<int8_t>(s, kv);
    for (int32_t r = 0; r < s.rows; ++r) {
      const int32_t query = (first_row + r) / group, head = (first_row + r) % group;
      float* to = out + query * out_stride + head * head_dim;
      const F factor = V::set1(1.0f / s.total[r]);
      for (int32_t d = 0; d < head_dim; d += kLanes)
        V::store(to + d, V::mul(V::load(s.out + r * head_dim + d), factor));
    }
  }
}

}  // namespace
}  // namespace wf
