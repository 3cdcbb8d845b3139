// Attention against the reference, for every type of cache.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <string>
#include <vector>

#include "checks.h"

namespace wf::checks {
namespace {

float clamped_normal() { return std::clamp(normal(), -6.0f, 6.0f); }

const char* name_of(KvType type) { return type == KvType::kF16 ? "f16" : type == KvType::kF32 ? "f32" : "i8"; }

// Normal keys and values of `positions`, with exactly as much memory as they need, so that a sanitizer sees more.
struct Cache {
  Cache(KvType kv_type, int positions, int head_dim, int64_t row) : stride(row), type(kv_type) {
    const size_t elements = static_cast<size_t>(positions - 1) * row + head_dim;
    for (auto* part : {&k, &v}) {
      std::vector<float> x(elements);
      for (float& value : x) value = clamped_normal();
      if (type == KvType::kF32) part->f32 = x;
      part->f16.resize(type == KvType::kF16 ? elements : 0);
      part->i8.resize(type == KvType::kI8 ? elements : 0);
      part->scales.resize(type == KvType::kI8 ? positions : 0);
      for (int t = 0; t < positions; ++t) {
        const float* from = x.data() + t * row;
        if (type == KvType::kF16) kReferenceKernels.store_f16(from, head_dim, part->f16.data() + t * row);
        if (type == KvType::kI8)
          kReferenceKernels.store_i8(from, head_dim, part->i8.data() + t * row, part->scales.data() + t);
      }
    }
  }

  KvView view() const {
    if (type == KvType::kF16) return {k.f16.data(), v.f16.data(), nullptr, nullptr, stride, type};
    if (type == KvType::kF32) return {k.f32.data(), v.f32.data(), nullptr, nullptr, stride, type};
    return {k.i8.data(), v.i8.data(), k.scales.data(), v.scales.data(), stride, type};
  }

  struct Part {
    std::vector<uint16_t> f16;
    std::vector<float> f32, scales;
    std::vector<int8_t> i8;
  };
  Part k, v;
  int64_t stride;
  KvType type;
};

std::vector<float> normals(size_t count, float scale) {
  std::vector<float> x(count);
  for (float& value : x) value = scale * clamped_normal();
  return x;
}

void require_close(const Kernels& kernels, const std::string& what, const std::vector<float>& got,
                   const std::vector<float>& expected, double bound) {
  check_close(kernels, what.c_str(), got.data(), expected.data(), static_cast<int>(got.size()), 0, bound);
}

// Scores are off by 2 head_dim eps sum |q k| scale <= 2 head_dim eps 36 sqrt(head_dim) for |q|, |k| <= 6, weights by
// that and the exponential's 2e-7 relative, the mixture of |v| < 6 by `keys` roundings more and one for every tile of
// keys that raises the peak. int8 keys and values have two roundings more each, for the scales.
double bound_of(int head_dim, int keys, double largest_q) {
  return 6 * (2 * (head_dim + 2) * kEpsilon * 6 * largest_q * sqrt(head_dim) + 2e-6 + 3 * (keys + 2) * kEpsilon);
}

// The mixture of a whole range, from one part or from two merged.
std::vector<float> finished(const Kernels& kernels, const KvView& view, const std::vector<float>& q, int group,
                            int head_dim, int first, int middle, int last, float scale) {
  std::vector<float> out(q.size()), other(q.size());
  std::vector<float> peaks(group), totals(group), other_peaks(group), other_totals(group);
  kernels.attend(q.data(), group, &view, head_dim, first, middle, scale, peaks.data(), totals.data(), out.data());
  if (middle < last)
    kernels.attend(q.data(), group, &view, head_dim, middle, last, scale, other_peaks.data(), other_totals.data(),
                   other.data());
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t h = i / head_dim;
    const float peak = middle < last ? std::max(peaks[h], other_peaks[h]) : peaks[h];
    const float left = expf(peaks[h] - peak), right = middle < last ? expf(other_peaks[h] - peak) : 0.0f;
    out[i] = (left * out[i] + right * other[i]) / (left * totals[h] + right * other_totals[h]);
  }
  return out;
}

void test_attend(const Kernels& kernels) {
  for (KvType type : {KvType::kF16, KvType::kF32, KvType::kI8})
    for (int head_dim : {2, 8, 20, 64, 80, 128, 200})
      for (int length : {1, 2, 3, 5, 15, 33, 63, 64, 65, 130, 300})
        for (int group : {1, 2, 3, 4, 5, 9}) {
          const Cache cache(type, length, head_dim, head_dim + uniform(0, 1) * uniform(0, 5));
          const std::vector<float> q = normals(static_cast<size_t>(group) * head_dim, 1);
          const int first = uniform(0, 1) * uniform(0, length - 1), middle = uniform(first + 1, length);
          const float scale = 1.0f / sqrtf(head_dim);
          const std::string what = std::string("attend ") + name_of(type) + " head_dim " + std::to_string(head_dim) +
                                   " keys " + std::to_string(length) + " group " + std::to_string(group);
          require_close(kernels, what,
                        finished(kernels, cache.view(), q, group, head_dim, first, middle, length, scale),
                        finished(kReferenceKernels, cache.view(), q, group, head_dim, first, length, length, scale),
                        bound_of(head_dim, length, 6));
        }
}

float* scratch_of(int head_dim) {
  const size_t bytes = static_cast<size_t>(attend_scratch_floats(head_dim)) * sizeof(float);
  void* memory = aligned_alloc(64, bytes);
  memset(memory, 0xFF, bytes);  // NaN: nothing may be read before it is written
  return static_cast<float*>(memory);
}

void test_attend_block(const Kernels& kernels) {
  for (KvType type : {KvType::kF16, KvType::kF32, KvType::kI8})
    for (int head_dim : {16, 48, 64, 80, 128})
      for (int queries : {1, 2, 3, 9, 20, 50})
        for (int length : {1, 5, 63, 64, 65, 200}) {
          const int group = uniform(1, 4), last = length + queries - 1;
          const bool blocks = uniform(0, 1) == 1;  // of 7 positions, whose queries all see the whole block
          const int64_t row = group * head_dim + uniform(0, 3);
          const Cache cache(type, last, head_dim, head_dim + uniform(0, 3));
          const std::vector<float> q = normals(static_cast<size_t>(queries) * row, 2);
          std::vector<float> out(q.size()), expected(q.size()), one(q.size());
          float* scratch = scratch_of(head_dim);
          const KvView view = cache.view();
          const float scale = 1.0f / sqrtf(head_dim);
          std::vector<int32_t> seen(queries);
          for (int i = 0; i < queries; ++i) seen[i] = blocks ? std::min(last, (length + i + 6) / 7 * 7) : length + i;
          kernels.attend_block(q.data(), row, queries, group, &view, head_dim, seen.data(), scale, scratch, out.data(),
                               row);
          kReferenceKernels.attend_block(q.data(), row, queries, group, &view, head_dim, seen.data(), scale, scratch,
                                         expected.data(), row);
          const std::string what = std::string("attend_block ") + name_of(type) + " head_dim " +
                                   std::to_string(head_dim) + " queries " + std::to_string(queries) + " keys " +
                                   std::to_string(length);
          require_close(kernels, what, out, expected, bound_of(head_dim, last, 12));
          for (int i = 0; i < queries; ++i)  // a query's numbers do not depend on the others of the call
            kernels.attend_block(q.data() + i * row, row, 1, group, &view, head_dim, &seen[i], scale, scratch,
                                 one.data() + i * row, row);
          for (int i = 0; i < queries; ++i)
            if (memcmp(one.data() + i * row, out.data() + i * row, group * head_dim * sizeof(float)) != 0)
              fail(kernels, what + ": a query alone differs");
          free(scratch);
        }
}

void test_store_i8(const Kernels& kernels) {
  for (int n : {1, 2, 15, 16, 17, 64, 80, 128, 200})
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<float> x(n);  // 1: all zero; 2: halves, to meet ties; 3: tiny
      for (float& value : x) value = kind == 1 ? 0.0f : kind == 2 ? 0.5f * uniform(-254, 254) : clamped_normal();
      if (kind == 2) x[0] = 127.0f;
      if (kind == 3)
        for (float& value : x) value *= 1e-20f;
      std::vector<int8_t> codes(n, 5), expected(n, 5);
      float scale = 0, expected_scale = 0;
      kernels.store_i8(x.data(), n, codes.data(), &scale);
      kReferenceKernels.store_i8(x.data(), n, expected.data(), &expected_scale);
      if (codes != expected || scale != expected_scale) fail(kernels, "store_i8 of " + std::to_string(n));
    }
}

// What int8 costs: keys are off by at most half a step, s_k / 2 = max|k| / 254, in each element, so a score is off by
// at most e = scale * sum|q| * max_t s_k(t) / 2, a weight by the factor e^(2 e), and the mixture of values, each off by
// s_v / 2, by max|v| (e^(2 e) - 1) + max s_v / 2.
void test_cost_of_i8() {
  for (int round = 0; round < 50; ++round) {
    const int head_dim = 64, length = uniform(1, 300);
    const Cache exact(KvType::kF32, length, head_dim, head_dim);
    Cache coarse = exact;
    coarse.type = KvType::kI8;
    double key_step = 0, value_step = 0, largest = 0, sum = 0;
    for (auto* part : {&coarse.k, &coarse.v}) {
      part->i8.resize(part->f32.size());
      part->scales.resize(length);
      for (int t = 0; t < length; ++t) {
        kReferenceKernels.store_i8(part->f32.data() + t * head_dim, head_dim, part->i8.data() + t * head_dim,
                                   part->scales.data() + t);
        double& step = part == &coarse.k ? key_step : value_step;
        step = std::max<double>(step, part->scales[t] / 2);
      }
    }
    const std::vector<float> q = normals(head_dim, 1);
    for (float value : q) sum += fabs(value);
    for (float value : exact.v.f32) largest = std::max<double>(largest, fabs(value));
    const float scale = 1.0f / sqrtf(head_dim);
    const double score_error = scale * sum * key_step;
    const double bound =
        largest * (exp(2 * score_error) - 1) + value_step * exp(2 * score_error) + bound_of(head_dim, length, 6);
    require_close(kReferenceKernels, "int8 against float32",
                  finished(kReferenceKernels, coarse.view(), q, 1, head_dim, 0, length, length, scale),
                  finished(kReferenceKernels, exact.view(), q, 1, head_dim, 0, length, length, scale), bound);
  }
}

}  // namespace

void check_attention(const Kernels& kernels) {
  test_cost_of_i8();
  test_attend(kernels);
  test_attend_block(kernels);
  test_store_i8(kernels);
}

}  // namespace wf::checks
