// Every kernel that works on floats, written once over a small vector type. Each kernel file defines the type `V`
// in its anonymous namespace and then includes this file, so everything here is compiled with that file's flags and
// stays inside it.
//
// `V` has: F (the vector), kLanes, kTileTokens (tokens of the register tile of the dense product), zero, set1,
// load, store, add, sub, mul, div, max, fma(a, b, c) = a * b + c, round (half to even), pow2 (2^n of a whole n in
// [-126, 127]), sqrt1 (of one float), sum, sum4 (four sums to memory), peak, transpose (of kLanes vectors), from_f16,
// from_i8, to_i8 (of whole numbers in [-127, 127]), to_f16; and kAttendRows (see attend_block-inl.h).
#include "kernels/kernels.h"

// Sums live in registers across these calls; the compiler's own guess keeps some of them out of line, which sends
// every sum through memory and halves the speed.
#define WF_ALWAYS_INLINE inline __attribute__((always_inline))

namespace wf {
namespace {

using F = V::F;
constexpr int32_t kLanes = V::kLanes;

inline int32_t min_of(int32_t a, int32_t b) { return a < b ? a : b; }

WF_ALWAYS_INLINE F widen(const float* p) { return V::load(p); }
WF_ALWAYS_INLINE F widen(const uint16_t* p) { return V::from_f16(p); }
WF_ALWAYS_INLINE F widen(const int8_t* p) { return V::from_i8(p); }

// The first `count` < kLanes elements, zeros behind. Tails are rare (model widths are multiples of 16), so a copy
// through the stack is good enough and never reads behind the caller's memory.
template <class T>
inline F widen_tail(const T* p, int32_t count) {
  T copy[kLanes] = {};
  for (int32_t i = 0; i < count; ++i) copy[i] = p[i];
  return widen(copy);
}

inline void store_tail(float* p, F value, int32_t count) {
  float copy[kLanes];
  V::store(copy, value);
  for (int32_t i = 0; i < count; ++i) p[i] = copy[i];
}

template <class T>
WF_ALWAYS_INLINE F widen_some(const T* p, int32_t count) {
  return count >= kLanes ? widen(p) : widen_tail(p, count);
}

WF_ALWAYS_INLINE void store_some(float* p, F value, int32_t count) {
  if (count >= kLanes) {
    V::store(p, value);
  } else {
    store_tail(p, value, count);
  }
}

// e^x with a relative error below 2e-7 for x in [-87.3, 88]; smaller x are clamped to that range, larger ones must not
// be. Cody-Waite reduction to |r| <= ln(2)/2, then e^r = 1 + r + r^2 P(r) with the Cephes expf coefficients.
WF_ALWAYS_INLINE F exp_up_to_88(F x) {
  x = V::max(x, V::set1(-87.3f));
  const F n = V::round(V::mul(x, V::set1(1.44269504f)));
  F r = V::fma(n, V::set1(-0.693359375f), x);
  r = V::fma(n, V::set1(2.12194440e-4f), r);
  F p = V::set1(1.9875691500e-4f);
  p = V::fma(p, r, V::set1(1.3981999507e-3f));
  p = V::fma(p, r, V::set1(8.3334519073e-3f));
  p = V::fma(p, r, V::set1(4.1665795894e-2f));
  p = V::fma(p, r, V::set1(1.6666665459e-1f));
  p = V::fma(p, r, V::set1(5.0000001201e-1f));
  p = V::fma(p, V::mul(r, r), V::add(r, V::set1(1.0f)));
  return V::mul(p, V::pow2(n));
}

// The same for any x.
WF_ALWAYS_INLINE F exp_of(F x) {
  return exp_up_to_88(V::sub(V::zero(), V::max(V::sub(V::zero(), x), V::set1(-88.0f))));
}

WF_ALWAYS_INLINE F absolute(F x) { return V::max(x, V::sub(V::zero(), x)); }

// The largest magnitude, at least 1e-5.
inline float peak_of(const float* x, int32_t n) {
  F peaks = V::set1(1e-5f);
  for (int32_t i = 0; i < n; i += kLanes) peaks = V::max(peaks, absolute(widen_some(x + i, n - i)));
  return V::peak(peaks);
}

inline void quantize_peak(const float* x, float peak, int32_t n, int8_t* q, int32_t* block_sums, float* scale) {
  const F factor = V::set1(127.0f / peak);
  const int32_t blocks = (n + kColumnsPerBlock - 1) / kColumnsPerBlock;
  for (int32_t block = 0; block < blocks; ++block) {
    F sums = V::zero();  // whole numbers up to 64 * 127: exact in float32
    for (int32_t i = block * kColumnsPerBlock; i < (block + 1) * kColumnsPerBlock; i += kLanes) {
      const F value = i < n ? V::round(V::mul(widen_some(x + i, n - i), factor)) : V::zero();
      V::to_i8(q + i, value);
      sums = V::add(sums, value);
    }
    block_sums[block] = static_cast<int32_t>(V::sum(sums));
  }
  *scale = peak / 127.0f;
}

void quantize(const float* x, int32_t n, int8_t* q, int32_t* block_sums, float* scale) {
  quantize_peak(x, peak_of(x, n), n, q, block_sums, scale);
}

// Whole numbers of magnitude up to 16256, and sums of 32 of them, are exact in float32, and so are the two halves:
// high = floor((v + 64) / 128) is the whole number nearest to (v + 1/2) / 128, which never lies between two.
void quantize_wide(const float* x, int32_t n, int8_t* high, int8_t* low, int32_t* half_sums, float* scale) {
  constexpr float kPeak = 16256.0f;
  constexpr int32_t kHalf = kColumnsPerBlock / 2;
  const float peak = peak_of(x, n);
  const F factor = V::set1(kPeak / peak);
  const int32_t halves = (n + kColumnsPerBlock - 1) / kColumnsPerBlock * 2;
  for (int32_t half = 0; half < halves; ++half) {
    F sums = V::zero();
    for (int32_t i = half * kHalf; i < (half + 1) * kHalf; i += kLanes) {
      const F value = i < n ? V::round(V::mul(widen_some(x + i, n - i), factor)) : V::zero();
      const F top = V::round(V::mul(V::add(value, V::set1(0.5f)), V::set1(0x1p-7f)));
      V::to_i8(high + i, top);
      V::to_i8(low + i, V::sub(value, V::mul(top, V::set1(128.0f))));
      sums = V::add(sums, value);
    }
    half_sums[half] = static_cast<int32_t>(V::sum(sums));
  }
  *scale = peak / kPeak;
}

inline F rms_factor(const float* x, float eps, int32_t n) {
  F sums = V::zero();
  for (int32_t i = 0; i < n; i += kLanes) {
    const F value = widen_some(x + i, n - i);
    sums = V::fma(value, value, sums);
  }
  return V::set1(1.0f / V::sqrt1(V::sum(sums) / static_cast<float>(n) + eps));
}

void rms_norm(const float* x, const float* weight, float eps, int32_t n, float* y) {
  const F factor = rms_factor(x, eps, n);
  for (int32_t i = 0; i < n; i += kLanes)
    store_some(y + i, V::mul(V::mul(widen_some(x + i, n - i), factor), widen_some(weight + i, n - i)), n - i);
}

void norm_quantize(const float* x, const float* weight, float eps, int32_t n, float* y, int8_t* q, int32_t* block_sums,
                   float* scale) {
  const F factor = rms_factor(x, eps, n);
  F peaks = V::set1(1e-5f);
  for (int32_t i = 0; i < n; i += kLanes) {
    const F value = V::mul(V::mul(widen_some(x + i, n - i), factor), widen_some(weight + i, n - i));
    store_some(y + i, value, n - i);
    peaks = V::max(peaks, absolute(value));
  }
  quantize_peak(y, V::peak(peaks), n, q, block_sums, scale);
}

void silu_mul(const float* gate, const float* up, int32_t n, float* out) {
  for (int32_t i = 0; i < n; i += kLanes) {
    const F g = widen_some(gate + i, n - i), u = widen_some(up + i, n - i);
    const F sigmoid_inverse = V::add(V::set1(1.0f), exp_of(V::sub(V::zero(), g)));
    store_some(out + i, V::mul(V::div(g, sigmoid_inverse), u), n - i);
  }
}

void relu2_mul(const float* gate, const float* up, int32_t n, float* out) {
  for (int32_t i = 0; i < n; i += kLanes) {
    const F positive = V::max(widen_some(gate + i, n - i), V::zero());
    store_some(out + i, V::mul(V::mul(positive, positive), widen_some(up + i, n - i)), n - i);
  }
}

void add(float* y, const float* x, int32_t n) {
  for (int32_t i = 0; i < n; i += kLanes)
    store_some(y + i, V::add(widen_some(y + i, n - i), widen_some(x + i, n - i)), n - i);
}

void store_f16(const float* x, int32_t n, uint16_t* out) {
  int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) V::to_f16(out + i, V::load(x + i));
  if (i == n) return;
  uint16_t copy[kLanes];
  V::to_f16(copy, widen_tail(x + i, n - i));
  for (int32_t j = 0; i + j < n; ++j) out[i + j] = copy[j];
}

// ---------------------------------------------------------------------------------------------- dense products
// y[t, r] = w[r] . x[t] for weights in float16 and float activations.

// One token: weights are read once and converted in registers. One row after the other, so that memory is one
// ascending stream: four rows at a time share the loads of x but are four short streams, and that is three times
// slower where the weights come from memory (8 against 25 GB/s with one core of a Zen 4).
inline void dense_one(const uint16_t* w, int32_t columns, const float* x, int32_t begin, int32_t end, float* y) {
  for (int32_t row = begin; row < end; ++row) {
    const uint16_t* line = w + static_cast<int64_t>(row) * columns;
    F a = V::zero(), b = a, c = a, d = a;
    int32_t i = 0;
    for (; i + 4 * kLanes <= columns; i += 4 * kLanes) {
      a = V::fma(widen(line + i), V::load(x + i), a);
      b = V::fma(widen(line + i + kLanes), V::load(x + i + kLanes), b);
      c = V::fma(widen(line + i + 2 * kLanes), V::load(x + i + 2 * kLanes), c);
      d = V::fma(widen(line + i + 3 * kLanes), V::load(x + i + 3 * kLanes), d);
    }
    for (; i < columns; i += kLanes) a = V::fma(widen_some(line + i, columns - i), widen_some(x + i, columns - i), a);
    y[row] = V::sum(V::add(V::add(a, b), V::add(c, d)));
  }
}

constexpr int32_t kDenseRows = 16;      // rows converted to float32 at once ...
constexpr int32_t kDenseColumns = 256;  // ... for this many columns: 16 KiB, half of the smallest L1

// 4 rows x T tokens over `count` columns; adds to y.
template <int32_t T>
WF_ALWAYS_INLINE void dense_tile(const float* w, const float* x, int64_t x_stride, int32_t count, int32_t rows,
                                 float* y, int64_t y_stride) {
  F sums[4][T];
  for (int32_t r = 0; r < 4; ++r)
    for (int32_t t = 0; t < T; ++t) sums[r][t] = V::zero();
  for (int32_t i = 0; i < count; i += kLanes) {
    F part[T];
    for (int32_t t = 0; t < T; ++t) part[t] = widen_some(x + t * x_stride + i, count - i);
    for (int32_t r = 0; r < 4; ++r) {
      const F weight = V::load(w + r * kDenseColumns + i);
      for (int32_t t = 0; t < T; ++t) sums[r][t] = V::fma(weight, part[t], sums[r][t]);
    }
  }
  for (int32_t r = 0; r < rows; ++r)
    for (int32_t t = 0; t < T; ++t) y[t * y_stride + r] += V::sum(sums[r][t]);
}

template <int32_t T>
inline void dense_tokens(const float* w, const float* x, int64_t x_stride, int32_t count, int32_t rows, int32_t tokens,
                         float* y, int64_t y_stride) {
  int32_t t = 0;
  for (; t + T <= tokens; t += T)
    for (int32_t r = 0; r < rows; r += 4)
      dense_tile<T>(w + r * kDenseColumns, x + t * x_stride, x_stride, count, min_of(4, rows - r), y + t * y_stride + r,
                    y_stride);
  if constexpr (T > 1) {
    if (t < tokens)
      dense_tokens<T - 1>(w, x + t * x_stride, x_stride, count, rows, tokens - t, y + t * y_stride, y_stride);
  }
}

void f16_gemm(const uint16_t* w, int32_t columns, const float* x, int32_t tokens, int32_t begin, int32_t end, float* y,
              int64_t y_stride) {
  if (tokens == 1) return dense_one(w, columns, x, begin, end, y);
  alignas(64) float panel[kDenseRows * kDenseColumns];
  for (int32_t row = begin; row < end; row += kDenseRows) {
    const int32_t rows = min_of(kDenseRows, end - row);
    for (int32_t t = 0; t < tokens; ++t)
      for (int32_t r = 0; r < rows; ++r) y[t * y_stride + row + r] = 0.0f;
    for (int32_t first = 0; first < columns; first += kDenseColumns) {
      const int32_t count = min_of(kDenseColumns, columns - first);
      for (int32_t r = 0; r < (rows + 3) / 4 * 4; ++r)  // missing rows of the last tile repeat the last row
        for (int32_t i = 0; i < count; i += kLanes)
          V::store(panel + r * kDenseColumns + i,
                   widen_some(w + static_cast<int64_t>(row + min_of(r, rows - 1)) * columns + first + i, count - i));
      dense_tokens<V::kTileTokens>(panel, x + first, columns, count, rows, tokens, y + row, y_stride);
    }
  }
}

// --------------------------------------------------------------------------------------------- keys and values

void store_i8(const float* x, int32_t n, int8_t* out, float* scale) {
  F peaks = V::set1(1e-30f);
  for (int32_t i = 0; i < n; i += kLanes) peaks = V::max(peaks, absolute(widen_some(x + i, n - i)));
  const float peak = V::peak(peaks);
  const F factor = V::set1(127.0f / peak);
  int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes) V::to_i8(out + i, V::round(V::mul(V::load(x + i), factor)));
  if (i < n) {
    int8_t copy[kLanes];
    V::to_i8(copy, V::round(V::mul(widen_tail(x + i, n - i), factor)));
    for (int32_t j = 0; i + j < n; ++j) out[i + j] = copy[j];
  }
  *scale = peak / 127.0f;
}

}  // namespace
}  // namespace wf
