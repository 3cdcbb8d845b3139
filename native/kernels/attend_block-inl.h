// Attention for many queries at once, written once over the vector type `V` (see float_ops-inl.h).
//
// A block of kBlockRows rows (a row: one query of one head) meets the keys in tiles of kTileKeys. A tile of keys is
// converted and transposed once, so that a score needs no sum across a register; the softmax is kept up to date tile
// by tile: row r holds its largest score m, the sum l of e^(score - m), and the mixture of values under those weights;
// a larger score in a new tile scales both down. (Online softmax: Milakov and Gimelshein, arXiv 1805.02867.)
#include "kernels/kernels.h"

namespace wf {
namespace {

constexpr int32_t kBlockRows = 24;
constexpr int32_t kTileKeys = 64;
constexpr float kNoScore = -1e30f;

// One block's state; about 60 KiB of stack for the widest head, a third of that for heads of 64.
struct AttendState {
  alignas(64) float q[kBlockRows * kMaxBlockHeadDim];    // scaled, [row][head_dim]
  alignas(64) float out[kBlockRows * kMaxBlockHeadDim];  // [row][head_dim]
  alignas(64) float keys[kTileKeys * kMaxBlockHeadDim];  // [head_dim][kTileKeys]
  alignas(64) float weights[kBlockRows * kTileKeys];     // scores, then e^(score - m)
  float peak[kBlockRows], total[kBlockRows];
  int32_t visible[kBlockRows];
  int32_t rows, head_dim;
};

// keys[d][t] of `count` keys; zeros for the missing ones of the tile.
template <class Cache>
inline void transpose_keys(AttendState& s, const Cache* k, int64_t stride, int32_t count) {
  for (int32_t t = 0; t < kTileKeys; t += kLanes)
    for (int32_t d = 0; d < s.head_dim; d += kLanes) {
      F block[kLanes];
      for (int32_t i = 0; i < kLanes; ++i) block[i] = t + i < count ? widen(k + (t + i) * stride + d) : V::zero();
      V::transpose(block);
      for (int32_t i = 0; i < kLanes; ++i) V::store(s.keys + (d + i) * kTileKeys + t, block[i]);
    }
}

// Scores of R rows with 4 registers of keys.
template <int32_t R>
WF_ALWAYS_INLINE void score_tile(AttendState& s, int32_t row, int32_t t) {
  F sums[R][4];
  for (int32_t r = 0; r < R; ++r)
    for (int32_t j = 0; j < 4; ++j) sums[r][j] = V::zero();
  const float* q = s.q + row * s.head_dim;
  for (int32_t d = 0; d < s.head_dim; ++d) {
    F part[R];
    for (int32_t r = 0; r < R; ++r) part[r] = V::set1(q[r * s.head_dim + d]);
    for (int32_t j = 0; j < 4; ++j) {
      const F keys = V::load(s.keys + d * kTileKeys + t + j * kLanes);
      for (int32_t r = 0; r < R; ++r) sums[r][j] = V::fma(keys, part[r], sums[r][j]);
    }
  }
  for (int32_t r = 0; r < R; ++r)
    for (int32_t j = 0; j < 4; ++j) V::store(s.weights + (row + r) * kTileKeys + t + j * kLanes, sums[r][j]);
}

// Adds the values of `count` positions under the weights to 4 registers of R rows' mixtures.
template <int32_t R, class Cache>
WF_ALWAYS_INLINE void mix_tile(AttendState& s, int32_t row, const Cache* v, int64_t stride, int32_t d, int32_t count) {
  F sums[R][4];
  float* out = s.out + row * s.head_dim + d;
  for (int32_t r = 0; r < R; ++r)
    for (int32_t j = 0; j < 4; ++j) sums[r][j] = V::load(out + r * s.head_dim + j * kLanes);
  for (int32_t t = 0; t < count; ++t) {
    F weight[R];
    for (int32_t r = 0; r < R; ++r) weight[r] = V::set1(s.weights[(row + r) * kTileKeys + t]);
    for (int32_t j = 0; j < 4; ++j) {
      const F values = widen(v + t * stride + d + j * kLanes);
      for (int32_t r = 0; r < R; ++r) sums[r][j] = V::fma(values, weight[r], sums[r][j]);
    }
  }
  for (int32_t r = 0; r < R; ++r)
    for (int32_t j = 0; j < 4; ++j) V::store(out + r * s.head_dim + j * kLanes, sums[r][j]);
}

// The last registers of a head whose width is no multiple of four of them.
template <class Cache>
inline void mix_rest(AttendState& s, int32_t row, const Cache* v, int64_t stride, int32_t d, int32_t count) {
  for (; d < s.head_dim; d += kLanes) {
    F sum = V::load(s.out + row * s.head_dim + d);
    for (int32_t t = 0; t < count; ++t)
      sum = V::fma(widen(v + t * stride + d), V::set1(s.weights[row * kTileKeys + t]), sum);
    V::store(s.out + row * s.head_dim + d, sum);
  }
}

template <int32_t R, class Cache>
inline void mix_rows(AttendState& s, int32_t row, const Cache* v, int64_t stride, int32_t count) {
  int32_t d = 0;
  for (; d + 4 * kLanes <= s.head_dim; d += 4 * kLanes) mix_tile<R>(s, row, v, stride, d, count);
  for (int32_t r = 0; r < R; ++r) mix_rest(s, row + r, v, stride, d, count);
}

// Scores to weights for one row, its earlier sums scaled to the new peak. `first` is the tile's first position.
inline void update_softmax(AttendState& s, int32_t row, int32_t first) {
  float* weights = s.weights + row * kTileKeys;
  const int32_t seen = min_of(kTileKeys, s.visible[row] - first);  // positions behind are not for this row
  for (int32_t t = seen > 0 ? seen : 0; t < kTileKeys; ++t) weights[t] = kNoScore;
  F peaks = V::set1(s.peak[row]);
  for (int32_t t = 0; t < kTileKeys; t += kLanes) peaks = V::max(peaks, V::load(weights + t));
  const float peak = V::peak(peaks);
  if (peak > s.peak[row]) {
    float factor[kLanes];
    V::store(factor, exp_of(V::set1(s.peak[row] - peak)));
    s.total[row] *= factor[0];
    float* out = s.out + row * s.head_dim;
    for (int32_t d = 0; d < s.head_dim; d += kLanes) V::store(out + d, V::mul(V::load(out + d), V::set1(factor[0])));
    s.peak[row] = peak;
  }
  F sums = V::zero();
  for (int32_t t = 0; t < kTileKeys; t += kLanes) {
    const F weight = exp_of(V::sub(V::load(weights + t), V::set1(peak)));
    V::store(weights + t, weight);
    if (t + kLanes <= seen) sums = V::add(sums, weight);
  }
  s.total[row] += V::sum(sums);
  for (int32_t t = seen > 0 ? seen / kLanes * kLanes : 0; t < seen; ++t) s.total[row] += weights[t];
  for (int32_t t = seen > 0 ? seen : 0; t < kTileKeys; ++t) weights[t] = 0.0f;
}

template <int32_t R, class Cache>
inline void attend_rows(AttendState& s, int32_t row, const Cache* v, int64_t stride, int32_t first, int32_t count) {
  for (; row + R <= s.rows; row += R) {
    for (int32_t t = 0; t < count; t += 4 * kLanes) score_tile<R>(s, row, t);
    for (int32_t r = 0; r < R; ++r) update_softmax(s, row + r, first);
    mix_rows<R>(s, row, v, stride, count);
  }
  if constexpr (R > 1) {
    if (row < s.rows) attend_rows<R - 1>(s, row, v, stride, first, count);
  }
}

template <class Cache>
inline void attend_block_any(const float* q, int64_t q_stride, int32_t queries, int32_t group, const Cache* k,
                             const Cache* v, int64_t stride, int32_t head_dim, int32_t length, float scale, float* out,
                             int64_t out_stride) {
  AttendState s;
  s.head_dim = head_dim;
  const int32_t all_rows = queries * group;
  for (int32_t first_row = 0; first_row < all_rows; first_row += kBlockRows) {
    s.rows = min_of(kBlockRows, all_rows - first_row);
    for (int32_t r = 0; r < s.rows; ++r) {
      const int32_t query = (first_row + r) / group, head = (first_row + r) % group;
      const float* from = q + query * q_stride + head * head_dim;
      for (int32_t d = 0; d < head_dim; d += kLanes) {
        V::store(s.q + r * head_dim + d, V::mul(V::load(from + d), V::set1(scale)));
        V::store(s.out + r * head_dim + d, V::zero());
      }
      s.visible[r] = length + query;
      s.peak[r] = kNoScore;
      s.total[r] = 0.0f;
    }
    const int32_t longest = s.visible[s.rows - 1];
    for (int32_t first = 0; first < longest; first += kTileKeys) {
      const int32_t count = min_of(kTileKeys, longest - first);
      transpose_keys(s, k + first * stride, stride, count);
      attend_rows<V::kAttendRows>(s, 0, v + first * stride, stride, first, count);
    }
    for (int32_t r = 0; r < s.rows; ++r) {
      const int32_t query = (first_row + r) / group, head = (first_row + r) % group;
      float* to = out + query * out_stride + head * head_dim;
      const F factor = V::set1(1.0f / s.total[r]);
      for (int32_t d = 0; d < head_dim; d += kLanes)
        V::store(to + d, V::mul(V::load(s.out + r * head_dim + d), factor));
    }
  }
}

void attend_block(const float* q, int64_t q_stride, int32_t queries, int32_t group, const uint16_t* k,
                  const uint16_t* v, int64_t stride, int32_t head_dim, int32_t length, float scale, float* out,
                  int64_t out_stride) {
  attend_block_any(q, q_stride, queries, group, k, v, stride, head_dim, length, scale, out, out_stride);
}

void attend_block_f32(const float* q, int64_t q_stride, int32_t queries, int32_t group, const float* k, const float* v,
                      int64_t stride, int32_t head_dim, int32_t length, float scale, float* out, int64_t out_stride) {
  attend_block_any(q, q_stride, queries, group, k, v, stride, head_dim, length, scale, out, out_stride);
}

}  // namespace
}  // namespace wf
