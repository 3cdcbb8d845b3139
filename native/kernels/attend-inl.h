// Attention for one query position, written once over the vector type `V` (see float_ops-inl.h).
//
// The query heads that share a key-value head go together: a key is read and converted once for up to kSharedHeads of
// them, and at long contexts this reading is what attention costs. Keys come in tiles; the softmax is kept up to date
// tile by tile: a head holds its largest score m, the sum l of e^(score - m) and the mixture of values under those
// weights, and a larger score in a new tile scales both down. (Online softmax: Milakov and Gimelshein, arXiv
// 1805.02867.)
#include "kernels/kernels.h"

namespace wf {
namespace {

constexpr int32_t kTileKeys = kAttendTileKeys;
constexpr int32_t kSharedHeads = V::kAttendRows >= 4 ? 4 : 2;  // 4 sums each, 4 keys: 20 of 32 registers, 12 of 16
constexpr int32_t kAheadBytes = 1024;                          // of each of the two streams
constexpr float kNoScore = -1e30f;

// Asks for the lines of a row of `bytes` that lies kAheadBytes behind p.
WF_ALWAYS_INLINE void prefetch_row(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + kAheadBytes + i);
}

// Adds kLanes columns of four keys times those of H heads.
template <int32_t H, class Load, class LoadQ>
WF_ALWAYS_INLINE void score_step(F (&sums)[H][4], Load key, LoadQ query) {
  F keys[4];
  for (int32_t j = 0; j < 4; ++j) keys[j] = key(j);
  for (int32_t h = 0; h < H; ++h) {
    const F part = query(h);
    for (int32_t j = 0; j < 4; ++j) sums[h][j] = V::fma(keys[j], part, sums[h][j]);
  }
}

// scores[h][t] = q[h] . k[t] for `count` keys (and some more that the caller overwrites); scores has rows of kTileKeys.
template <int32_t H, class Cache>
inline void score_heads(const float* q, int32_t head_dim, const Cache* k, int64_t stride, int32_t count,
                        float* scores) {
  for (int32_t t = 0; t < count; t += 4) {
    const Cache* rows[4];
    for (int32_t j = 0; j < 4; ++j) {
      rows[j] = k + min_of(t + j, count - 1) * stride;
      prefetch_row(rows[j], head_dim * int64_t{sizeof(Cache)});
    }
    F sums[H][4];
    for (int32_t h = 0; h < H; ++h)
      for (int32_t j = 0; j < 4; ++j) sums[h][j] = V::zero();
    int32_t i = 0;
    for (; i + kLanes <= head_dim; i += kLanes)
      score_step<H>(
          sums, [&](int32_t j) { return widen(rows[j] + i); },
          [&](int32_t h) { return V::load(q + h * head_dim + i); });
    if (i < head_dim)
      score_step<H>(
          sums, [&](int32_t j) { return widen_tail(rows[j] + i, head_dim - i); },
          [&](int32_t h) { return widen_tail(q + h * head_dim + i, head_dim - i); });
    for (int32_t h = 0; h < H; ++h) V::sum4(sums[h][0], sums[h][1], sums[h][2], sums[h][3], scores + h * kTileKeys + t);
  }
}

// out[h][d .. d + N * kLanes) += sum_t weights[h][t] v[t]. One head alone needs two chains of sums to hide latency.
template <int32_t H, int32_t N, class Cache>
inline void mix_heads(const float* weights, int32_t head_dim, const Cache* v, int64_t stride, int32_t count,
                      float* out) {
  constexpr int32_t kChains = H == 1 ? 2 : 1;
  F sums[kChains][H][N];
  for (int32_t h = 0; h < H; ++h)
    for (int32_t n = 0; n < N; ++n) {
      sums[0][h][n] = V::load(out + h * head_dim + n * kLanes);
      if constexpr (kChains == 2) sums[1][h][n] = V::zero();
    }
  int32_t t = 0;
  for (; t + kChains <= count; t += kChains)
    for (int32_t c = 0; c < kChains; ++c) {
      const Cache* row = v + (t + c) * stride;
      prefetch_row(row, N * kLanes * int64_t{sizeof(Cache)});
      F values[N];
      for (int32_t n = 0; n < N; ++n) values[n] = widen(row + n * kLanes);
      for (int32_t h = 0; h < H; ++h) {
        const F weight = V::set1(weights[h * kTileKeys + t + c]);
        for (int32_t n = 0; n < N; ++n) sums[c][h][n] = V::fma(values[n], weight, sums[c][h][n]);
      }
    }
  for (; t < count; ++t)
    for (int32_t h = 0; h < H; ++h)
      for (int32_t n = 0; n < N; ++n)
        sums[0][h][n] = V::fma(widen(v + t * stride + n * kLanes), V::set1(weights[h * kTileKeys + t]), sums[0][h][n]);
  for (int32_t h = 0; h < H; ++h)
    for (int32_t n = 0; n < N; ++n) {
      if constexpr (kChains == 2) sums[0][h][n] = V::add(sums[0][h][n], sums[1][h][n]);
      V::store(out + h * head_dim + n * kLanes, sums[0][h][n]);
    }
}

template <int32_t H, class Cache>
inline void mix_tile_of_heads(const float* weights, int32_t head_dim, const Cache* v, int64_t stride, int32_t count,
                              float* out) {
  int32_t d = 0;
  for (; d + 4 * kLanes <= head_dim; d += 4 * kLanes) mix_heads<H, 4>(weights, head_dim, v + d, stride, count, out + d);
  for (; d + kLanes <= head_dim; d += kLanes) mix_heads<H, 1>(weights, head_dim, v + d, stride, count, out + d);
  if (d == head_dim) return;
  for (int32_t h = 0; h < H; ++h) {
    F sum = widen_tail(out + h * head_dim + d, head_dim - d);
    for (int32_t t = 0; t < count; ++t)
      sum = V::fma(widen_tail(v + t * stride + d, head_dim - d), V::set1(weights[h * kTileKeys + t]), sum);
    store_tail(out + h * head_dim + d, sum, head_dim - d);
  }
}

inline void scale_row(float* out, int32_t head_dim, float factor) {
  for (int32_t d = 0; d < head_dim; d += kLanes)
    store_some(out + d, V::mul(widen_some(out + d, head_dim - d), V::set1(factor)), head_dim - d);
}

// Raises the peak of a row to that of kTileKeys scores and scales what was summed under the old one.
inline void raise_peak(const float* scores, int32_t head_dim, float* peak, float* total, float* out) {
  F peaks = V::set1(*peak);
  for (int32_t t = 0; t < kTileKeys; t += kLanes) peaks = V::max(peaks, V::load(scores + t));
  const float found = V::peak(peaks);
  if (!(found > *peak)) return;
  if (*total > 0) {
    float factor[kLanes];
    V::store(factor, exp_up_to_88(V::set1(*peak - found)));
    *total *= factor[0];
    scale_row(out, head_dim, factor[0]);
  }
  *peak = found;
}

// Dot products of a tile to weights for one head; `count` of them are keys.
template <bool kScaled>
inline void weigh_tile(float* scores, int32_t count, float scale, const float* k_scales, const float* v_scales,
                       int32_t head_dim, float* peak, float* total, float* out) {
  for (int32_t t = count; t < kTileKeys; ++t) scores[t] = kNoScore;
  for (int32_t t = 0; t < count; t += kLanes) {
    F score = V::mul(V::load(scores + t), V::set1(scale));
    if constexpr (kScaled) score = V::mul(score, widen_some(k_scales + t, count - t));
    store_some(scores + t, score, count - t);
  }
  raise_peak(scores, head_dim, peak, total, out);
  F sums = V::zero();
  for (int32_t t = 0; t < count; t += kLanes) {  // behind `count` e^-87, which changes no sum of 1 or more
    const F weight = exp_up_to_88(V::sub(V::load(scores + t), V::set1(*peak)));
    sums = V::add(sums, weight);
    V::store(scores + t, kScaled ? V::mul(weight, widen_some(v_scales + t, count - t)) : weight);
  }
  *total += V::sum(sums);
}

template <int32_t H, class Cache>
inline void attend_tile(const float* q, const Cache* k, const Cache* v, const float* k_scales, const float* v_scales,
                        int64_t stride, int32_t head_dim, int32_t count, float scale, float* peaks, float* totals,
                        float* out) {
  constexpr bool kScaled = sizeof(Cache) == 1;
  alignas(64) float weights[H * kTileKeys];
  score_heads<H>(q, head_dim, k, stride, count, weights);
  for (int32_t h = 0; h < H; ++h)
    weigh_tile<kScaled>(weights + h * kTileKeys, count, scale, k_scales, v_scales, head_dim, peaks + h, totals + h,
                        out + h * head_dim);
  mix_tile_of_heads<H>(weights, head_dim, v, stride, count, out);
}

template <class Cache>
inline void attend_range(const float* q, int32_t group, const KvView* kv, int32_t head_dim, int32_t first, int32_t last,
                         float scale, float* peaks, float* totals, float* out) {
  for (int32_t h = 0; h < group; ++h) {
    peaks[h] = kNoScore;
    totals[h] = 0;
  }
  for (int32_t i = 0; i < group * head_dim; ++i) out[i] = 0;
  for (int32_t t = first; t < last; t += kTileKeys) {
    const int32_t count = min_of(kTileKeys, last - t);
    const Cache* k = static_cast<const Cache*>(kv->k) + t * kv->stride;
    const Cache* v = static_cast<const Cache*>(kv->v) + t * kv->stride;
    const float* k_scales = kv->k_scales ? kv->k_scales + t : nullptr;
    const float* v_scales = kv->v_scales ? kv->v_scales + t : nullptr;
    for (int32_t h = 0; h < group;) {
      const auto heads = [&](auto tile) {
        tile(q + h * head_dim, k, v, k_scales, v_scales, kv->stride, head_dim, count, scale, peaks + h, totals + h,
             out + h * head_dim);
      };
      const int32_t left = min_of(group - h, kSharedHeads);
      if (left == 1) heads(attend_tile<1, Cache>);
      if (left == 2) heads(attend_tile<2, Cache>);
      if constexpr (kSharedHeads > 2) {
        if (left == 3) heads(attend_tile<3, Cache>);
        if (left == 4) heads(attend_tile<4, Cache>);
      }
      h += left;
    }
  }
}

void attend(const float* q, int32_t group, const KvView* kv, int32_t head_dim, int32_t first, int32_t last, float scale,
            float* peaks, float* totals, float* out) {
  if (kv->type == KvType::kF16)
    return attend_range<uint16_t>(q, group, kv, head_dim, first, last, scale, peaks, totals, out);
  if (kv->type == KvType::kF32)
    return attend_range<float>(q, group, kv, head_dim, first, last, scale, peaks, totals, out);
  attend_range<int8_t>(q, group, kv, head_dim, first, last, scale, peaks, totals, out);
}

}  // namespace
}  // namespace wf
