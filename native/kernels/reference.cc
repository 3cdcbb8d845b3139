// The specification in plain loops: every other kernel file is tested against this one. Not for speed.
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

namespace wf {
namespace {

float float_of_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 31u, fraction = bits & 1023u;
  if (exponent == 0) {  // zero and subnormals: fraction * 2^-24
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;  // 112 = 127 - 15
  const uint32_t word = sign | (wide << 23) | (fraction << 13);
  float value;
  memcpy(&value, &word, 4);
  return value;
}

// Round half to even, as the hardware conversions do; overflow gives infinity, NaN stays NaN.
uint16_t half_of_float(float value) {
  uint32_t word;
  memcpy(&word, &value, 4);
  const uint16_t sign = static_cast<uint16_t>((word >> 16) & 0x8000u);
  const uint32_t magnitude = word & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00u;   // NaN
  if (magnitude >= 0x47800000u) return sign | 0x7C00u;  // 65536 and more: infinity
  if (magnitude < 0x38800000u) {                        // below 2^-14: a multiple of 2^-24
    float absolute;
    memcpy(&absolute, &magnitude, 4);
    return sign | static_cast<uint16_t>(rintf(absolute * 0x1p24f));
  }
  const uint32_t rebased = magnitude - (112u << 23);
  return sign | static_cast<uint16_t>((rebased + 0xFFFu + ((rebased >> 13) & 1u)) >> 13);
}

// Code of plane `plane` in a byte of t1.6-r16c64: multiply the fraction by three, the carry is the next code.
int32_t trit(uint8_t byte, int32_t plane) {
  uint32_t left = byte;
  for (int32_t i = 0; i < plane; ++i) left = 3 * left & 255u;
  return static_cast<int32_t>(3 * left >> 8);
}

// The ternary value of one weight, by the layouts of artifact/packing.py.
int32_t ternary(const TernaryMatrix* w, int32_t row, int32_t column) {
  const uint8_t* codes = w->codes + row / kRowsPerBlock * row_block_bytes(w->layout, w->column_blocks);
  const int32_t block = column / kColumnsPerBlock, inside = column % kColumnsPerBlock;
  const int32_t place = 4 * (row % kRowsPerBlock) + column % 4;
  const int32_t fives = w->layout == TernaryLayout::kFiveTrits ? w->column_blocks / kBlocksPerFive : 0;
  if (block < fives * kBlocksPerFive) {
    const uint8_t byte = codes[block / kBlocksPerFive * kBytesPerFive + 64 * (inside / 4) + place];
    return trit(byte, block % kBlocksPerFive) - 1;
  }
  const int64_t start = int64_t{fives} * kBytesPerFive + int64_t{block - fives * kBlocksPerFive} * kBytesPerBlock;
  return ((codes[start + 64 * (inside % 16 / 4) + place] >> (2 * (inside / 16))) & 3) - 1;
}

// Sum of weight times activation over the column blocks [first, last).
int32_t dot(const TernaryMatrix* w, int32_t row, const int8_t* q, int32_t first, int32_t last) {
  int32_t sum = 0;
  for (int32_t column = first * kColumnsPerBlock; column < last * kColumnsPerBlock; ++column)
    sum += ternary(w, row, column) * q[column];
  return sum;
}

int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }

float scaled_dot(const TernaryMatrix* w, int32_t row, const int8_t* q) {
  if (w->group_blocks == 0) return static_cast<float>(dot(w, row, q, 0, w->column_blocks)) * w->row_scales[row];
  const int32_t groups = (w->column_blocks + w->group_blocks - 1) / w->group_blocks;
  const uint16_t* scales = w->group_scales + static_cast<int64_t>(row / kRowsPerBlock) * groups * kRowsPerBlock;
  float sum = 0;
  for (int32_t group = 0; group < groups; ++group) {
    const int32_t first = group * w->group_blocks;
    const int32_t last = min(first + w->group_blocks, w->column_blocks);
    sum += static_cast<float>(dot(w, row, q, first, last)) *
           float_of_half(scales[group * kRowsPerBlock + row % kRowsPerBlock]);
  }
  return sum;
}

void quantize(const float* x, int32_t n, int8_t* q, int32_t* block_sums, float* scale) {
  float peak = 1e-5f;
  for (int32_t i = 0; i < n; ++i) peak = fabsf(x[i]) > peak ? fabsf(x[i]) : peak;
  const float factor = 127.0f / peak;
  const int32_t blocks = (n + kColumnsPerBlock - 1) / kColumnsPerBlock;
  for (int32_t block = 0; block < blocks; ++block) {
    block_sums[block] = 0;
    for (int32_t i = block * kColumnsPerBlock; i < (block + 1) * kColumnsPerBlock; ++i) {
      const float value = i < n ? rintf(x[i] * factor) : 0.0f;
      q[i] = value == value ? static_cast<int8_t>(value) : int8_t{0};  // NaN would be undefined
      block_sums[block] += q[i];
    }
  }
  *scale = peak / 127.0f;
}

void ternary_gemm(const TernaryMatrix* w, const int8_t* q, const int32_t*, const float* scales, int32_t tokens,
                  int32_t begin, int32_t end, float* y, int64_t y_stride) {
  const int64_t q_stride = static_cast<int64_t>(w->column_blocks) * kColumnsPerBlock;
  for (int32_t t = 0; t < tokens; ++t)
    for (int32_t row = begin * kRowsPerBlock; row < min(end * kRowsPerBlock, w->rows); ++row)
      y[t * y_stride + row] = scaled_dot(w, row, q + t * q_stride) * scales[t];
}

void ternary_dots(const TernaryMatrix* w, const int8_t* q, const int32_t*, int32_t tokens, int32_t begin, int32_t end,
                  int32_t* dots, int64_t dots_stride) {
  const int64_t q_stride = static_cast<int64_t>(w->column_blocks) * kColumnsPerBlock;
  for (int32_t t = 0; t < tokens; ++t)
    for (int32_t row = begin * kRowsPerBlock; row < min(end * kRowsPerBlock, w->rows); ++row)
      dots[t * dots_stride + row] = dot(w, row, q + t * q_stride, 0, w->column_blocks);
}

void quantize_wide(const float* x, int32_t n, int8_t* high, int8_t* low, int32_t* half_sums, float* scale) {
  constexpr float kPeak = 16256.0f;  // 127 * 128
  constexpr int32_t kHalf = kColumnsPerBlock / 2;
  float peak = 1e-5f;
  for (int32_t i = 0; i < n; ++i) peak = fabsf(x[i]) > peak ? fabsf(x[i]) : peak;
  const float factor = kPeak / peak;
  const int32_t halves = (n + kColumnsPerBlock - 1) / kColumnsPerBlock * 2;
  for (int32_t half = 0; half < halves; ++half) {
    half_sums[half] = 0;
    for (int32_t i = half * kHalf; i < (half + 1) * kHalf; ++i) {
      const float rounded = i < n ? rintf(x[i] * factor) : 0.0f;
      const int32_t value = rounded == rounded ? static_cast<int32_t>(rounded) : 0;  // NaN would be undefined
      high[i] = static_cast<int8_t>((value + 64) >> 7);
      low[i] = static_cast<int8_t>(value - 128 * high[i]);
      half_sums[half] += value;
    }
  }
  *scale = peak / kPeak;
}

// The integer value of one entry of a table, by the formats of artifact/packing.py.
int32_t table_value(const TableMatrix* w, int32_t row, int32_t column) {
  const int32_t inside = column % kColumnsPerBlock;
  const uint8_t* block =
      w->codes + (static_cast<int64_t>(row / kRowsPerBlock) * w->column_blocks + column / kColumnsPerBlock) *
                     table_block_bytes(w->format);
  const int32_t place = 4 * (row % kRowsPerBlock) + column % 4;
  if (w->format == TableFormat::kQ8) return block[64 * (inside / 4) + place] - 128;
  const int32_t nibble = block[64 * (inside % 32 / 4) + place] >> (inside / 32 * 4) & 15;
  if (w->format == TableFormat::kQ4) return nibble - 8;
  const int32_t high = block[512 + 64 * (inside % 16 / 4) + place] >> (inside / 16 * 2) & 3;
  return (high << 4 | nibble) - 32;
}

float table_dot(const TableMatrix* w, int32_t row, const int8_t* high, const int8_t* low) {
  const int32_t columns = w->column_blocks * kColumnsPerBlock;
  const int32_t group = w->format == TableFormat::kQ8 ? columns : w->format == TableFormat::kQ6 ? 64 : 32;
  const int32_t groups = columns / group;
  float sum = 0;
  for (int32_t g = 0; g < groups; ++g) {
    int64_t dot = 0;
    for (int32_t c = g * group; c < (g + 1) * group; ++c) dot += table_value(w, row, c) * (128 * high[c] + low[c]);
    if (w->row_scales) return static_cast<float>(dot) * w->row_scales[row];
    const int64_t place = (static_cast<int64_t>(row / kRowsPerBlock) * groups + g) * kRowsPerBlock;
    sum += static_cast<float>(dot) * float_of_half(w->group_scales[place + row % kRowsPerBlock]);
  }
  return sum;
}

void table_gemm(const TableMatrix* w, const WideActivations* x, int32_t tokens, int32_t begin, int32_t end, float* y,
                int64_t y_stride) {
  const int64_t stride = static_cast<int64_t>(w->column_blocks) * kColumnsPerBlock;
  for (int32_t t = 0; t < tokens; ++t)
    for (int32_t row = begin * kRowsPerBlock; row < min(end * kRowsPerBlock, w->rows); ++row)
      y[t * y_stride + row] = table_dot(w, row, x->high + t * stride, x->low + t * stride) * x->scales[t];
}

void f16_gemm(const uint16_t* w, int32_t columns, const float* x, int32_t tokens, int32_t begin, int32_t end, float* y,
              int64_t y_stride) {
  for (int32_t t = 0; t < tokens; ++t)
    for (int32_t row = begin; row < end; ++row) {
      float sum = 0;
      for (int32_t i = 0; i < columns; ++i)
        sum += float_of_half(w[static_cast<int64_t>(row) * columns + i]) * x[static_cast<int64_t>(t) * columns + i];
      y[t * y_stride + row] = sum;
    }
}

void rms_norm(const float* x, const float* weight, float eps, int32_t n, float* y) {
  float sum = 0;
  for (int32_t i = 0; i < n; ++i) sum += x[i] * x[i];
  const float factor = 1.0f / sqrtf(sum / static_cast<float>(n) + eps);
  for (int32_t i = 0; i < n; ++i) y[i] = x[i] * factor * weight[i];
}

void norm_quantize(const float* x, const float* weight, float eps, int32_t n, float* y, int8_t* q, int32_t* block_sums,
                   float* scale) {
  rms_norm(x, weight, eps, n, y);
  quantize(y, n, q, block_sums, scale);
}

void silu_mul(const float* gate, const float* up, int32_t n, float* out) {
  for (int32_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

void relu2_mul(const float* gate, const float* up, int32_t n, float* out) {
  for (int32_t i = 0; i < n; ++i) {
    const float positive = gate[i] > 0 ? gate[i] : 0.0f;
    out[i] = positive * positive * up[i];
  }
}

void add(float* y, const float* x, int32_t n) {
  for (int32_t i = 0; i < n; ++i) y[i] += x[i];
}

// Element d of the key or value of position t.
float kv_value(const void* memory, const float* scales, const KvView* kv, int32_t t, int32_t d) {
  const int64_t at = t * kv->stride + d;
  if (kv->type == KvType::kF16) return float_of_half(static_cast<const uint16_t*>(memory)[at]);
  if (kv->type == KvType::kF32) return static_cast<const float*>(memory)[at];
  return static_cast<float>(static_cast<const int8_t*>(memory)[at]) * scales[t];
}

float key_score(const float* q, const KvView* kv, int32_t head_dim, int32_t t, float scale) {
  float sum = 0;
  for (int32_t d = 0; d < head_dim; ++d) sum += q[d] * kv_value(kv->k, kv->k_scales, kv, t, d);
  return sum * scale;
}

// Two passes over the keys instead of memory for the scores.
void attend_one(const float* q, const KvView* kv, int32_t head_dim, int32_t first, int32_t last, float scale,
                float* peak, float* total, float* out) {
  *peak = -INFINITY;
  *total = 0;
  for (int32_t d = 0; d < head_dim; ++d) out[d] = 0;
  for (int32_t t = first; t < last; ++t) {
    const float score = key_score(q, kv, head_dim, t, scale);
    *peak = score > *peak ? score : *peak;
  }
  for (int32_t t = first; t < last; ++t) {
    const float weight = expf(key_score(q, kv, head_dim, t, scale) - *peak);  // at most 1: no overflow
    *total += weight;
    for (int32_t d = 0; d < head_dim; ++d) out[d] += weight * kv_value(kv->v, kv->v_scales, kv, t, d);
  }
}

void attend(const float* q, int32_t group, const KvView* kv, int32_t head_dim, int32_t first, int32_t last, float scale,
            float* peaks, float* totals, float* out) {
  for (int32_t h = 0; h < group; ++h)
    attend_one(q + h * head_dim, kv, head_dim, first, last, scale, peaks + h, totals + h, out + h * head_dim);
}

void attend_block(const float* q, int64_t q_stride, int32_t queries, int32_t group, const KvView* kv, int32_t head_dim,
                  const int32_t* seen, float scale, float*, float* out, int64_t out_stride) {
  for (int32_t i = 0; i < queries; ++i)
    for (int32_t h = 0; h < group; ++h) {
      float peak, total;
      float* result = out + i * out_stride + h * head_dim;
      attend_one(q + i * q_stride + h * head_dim, kv, head_dim, 0, seen[i], scale, &peak, &total, result);
      for (int32_t d = 0; d < head_dim; ++d) result[d] /= total;
    }
}

void softmax_sums(const float* x, int32_t n, float* peak, float* total, float* slope) {
  *peak = -1e30f;
  for (int32_t i = 0; i < n; ++i) *peak = x[i] > *peak ? x[i] : *peak;
  double sum = 0, weighted = 0;
  for (int32_t i = 0; i < n; ++i) {
    const double below = x[i] - *peak < -87.0f ? -87.0 : static_cast<double>(x[i]) - static_cast<double>(*peak);
    sum += exp(below);
    weighted += below * exp(below);
  }
  *total = static_cast<float>(sum);
  *slope = static_cast<float>(weighted);
}

void store_i8(const float* x, int32_t n, int8_t* out, float* scale) {
  float peak = 1e-30f;
  for (int32_t i = 0; i < n; ++i) peak = fabsf(x[i]) > peak ? fabsf(x[i]) : peak;
  const float factor = 127.0f / peak;
  for (int32_t i = 0; i < n; ++i) {
    const float value = rintf(x[i] * factor);
    out[i] = value == value ? static_cast<int8_t>(value) : int8_t{0};  // NaN would be undefined
  }
  *scale = peak / 127.0f;
}

void store_f16(const float* x, int32_t n, uint16_t* out) {
  for (int32_t i = 0; i < n; ++i) out[i] = half_of_float(x[i]);
}

int64_t burn_int8(int64_t rounds) {
  volatile int8_t source = 3;
  const int8_t a = source, b = source;
  volatile int32_t sink = 0;
  for (int64_t i = 0; i < rounds; ++i) sink = sink + a * b;
  return rounds;
}

}  // namespace

}  // namespace wf

#include "kernels/table-inl.h"

namespace wf {

const Kernels kReferenceKernels = table_named("reference");

}  // namespace wf
