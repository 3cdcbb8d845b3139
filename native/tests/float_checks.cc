// Norms, activations, half precision and attention of a kernel table against the reference.
#include <math.h>
#include <string.h>

#include "tests/checks.h"

namespace wf::checks {
namespace {

void test_elementwise(const Kernels& kernels) {
  const Kernels& reference = kReferenceKernels;
  for (int n : {1, 7, 8, 9, 31, 64, 100, 576, 1536}) {
    Buffer<float> a(n, 1), b(n, 2), y(n, 3), expected(n, 3);
    for (int i = 0; i < n; ++i) a.start[i] = 4 * normal(), b.start[i] = normal();
    if (n > 8) a.start[3] = 100.0f, a.start[4] = -100.0f, a.start[5] = 0.0f;
    kernels.rms_norm(a.start, b.start, 1e-5f, n, y.start);
    reference.rms_norm(a.start, b.start, 1e-5f, n, expected.start);
    check_close(kernels, "rms_norm", y.start, expected.start, n, (n + 8) * kEpsilon, 0);
    // 1e-6: the sigmoid has the exponential's relative error, 2e-7, and four roundings on each side. Below -88 the
    // clamped exponential gives up to 1e-36 where the exact value is smaller.
    kernels.silu_mul(a.start, b.start, n, y.start);
    reference.silu_mul(a.start, b.start, n, expected.start);
    check_close(kernels, "silu_mul", y.start, expected.start, n, 1e-6, 1e-35);
    kernels.relu2_mul(a.start, b.start, n, y.start);
    reference.relu2_mul(a.start, b.start, n, expected.start);
    check_close(kernels, "relu2_mul", y.start, expected.start, n, 4 * kEpsilon, 0);
    memcpy(y.start, b.start, n * sizeof(float));
    memcpy(expected.start, b.start, n * sizeof(float));
    kernels.add(y.start, a.start, n);
    reference.add(expected.start, a.start, n);
    check_close(kernels, "add", y.start, expected.start, n, 0, 0);
  }
}

// Every half, and the float32 values just beside and between neighbouring halves, where rounding decides.
void test_halves(const Kernels& kernels) {
  std::vector<float> values;
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const uint32_t exponent = bits >> 10, fraction = bits & 1023;
    const float value = exponent ? ldexpf(1024.0f + fraction, static_cast<int>(exponent) - 25) : ldexpf(fraction, -24);
    const float middle = value + ldexpf(1.0f, static_cast<int>(exponent ? exponent : 1) - 26);
    for (float sign : {1.0f, -1.0f})
      for (float v : {value, middle, nextafterf(middle, 0.0f), nextafterf(middle, 1e9f)}) values.push_back(sign * v);
  }
  for (float v : {65504.0f, 65519.9f, 65520.0f, 65536.0f, 1e9f, INFINITY, -INFINITY}) values.push_back(v);
  std::vector<uint16_t> got(values.size()), expected(values.size());
  kernels.store_f16(values.data(), static_cast<int>(values.size()), got.data());
  kReferenceKernels.store_f16(values.data(), static_cast<int>(values.size()), expected.data());
  if (got != expected) fail(kernels, "store_f16");
}

void test_attend(const Kernels& kernels) {
  const Kernels& reference = kReferenceKernels;
  for (int head_dim : {1, 8, 20, 64, 80, 128})
    for (int length : {1, 2, 3, 4, 5, 15, 16, 33, 100}) {
      const int64_t stride = head_dim + uniform(0, 5);
      Buffer<float> q(head_dim, 1), k(length * stride, 1), v(length * stride, 1), scores(length, 1), out(head_dim, 1),
          expected(head_dim, 1);
      Buffer<uint16_t> k16(length * stride, 1), v16(length * stride, 1);
      for (int i = 0; i < head_dim; ++i) q.start[i] = normal();
      for (int i = 0; i < length * stride; ++i) k.start[i] = normal(), v.start[i] = normal();
      reference.store_f16(k.start, length * stride, k16.start);
      reference.store_f16(v.start, length * stride, v16.start);
      const float scale = 1.0f / sqrtf(head_dim);
      // Scores are off by 2 head_dim eps sum |q k| scale <= 2 head_dim eps 36 sqrt(head_dim), weights by that and the
      // exponential's 2e-7 relative, the mixture of |v| < 6 by `length` roundings more.
      const double bound = 6 * (2 * head_dim * kEpsilon * 36 * sqrt(head_dim) + 1e-6 + 2 * length * kEpsilon);
      kernels.attend(q.start, k16.start, v16.start, stride, head_dim, length, scale, scores.start, out.start);
      reference.attend(q.start, k16.start, v16.start, stride, head_dim, length, scale, scores.start, expected.start);
      check_close(kernels, "attend", out.start, expected.start, head_dim, 0, bound);
      kernels.attend_f32(q.start, k.start, v.start, stride, head_dim, length, scale, scores.start, out.start);
      reference.attend_f32(q.start, k.start, v.start, stride, head_dim, length, scale, scores.start, expected.start);
      check_close(kernels, "attend_f32", out.start, expected.start, head_dim, 0, bound);
    }
}

void test_attend_block(const Kernels& kernels) {
  const Kernels& reference = kReferenceKernels;
  for (int head_dim : {16, 48, 64, 80, 128})
    for (int queries : {1, 2, 3, 9, 20})
      for (int length : {1, 5, 63, 64, 65, 200}) {
        const int group = uniform(1, 4), last = length + queries - 1;
        const int64_t stride = head_dim + uniform(0, 3), row = group * head_dim + uniform(0, 3);
        Buffer<float> q(queries * row, 1), k(last * stride, 1), v(last * stride, 1);
        Buffer<float> out(queries * row, 1), expected(queries * row, 1);
        Buffer<uint16_t> k16(last * stride, 1), v16(last * stride, 1);
        for (int i = 0; i < queries * row; ++i) q.start[i] = 2 * normal();
        for (int i = 0; i < last * stride; ++i) k.start[i] = normal(), v.start[i] = normal();
        reference.store_f16(k.start, last * stride, k16.start);
        reference.store_f16(v.start, last * stride, v16.start);
        const float scale = 1.0f / sqrtf(head_dim);
        // As for one query, with |q| < 12, and a rounding more for every tile of keys that raises the peak.
        const double bound = 6 * (2 * head_dim * kEpsilon * 72 * sqrt(head_dim) + 2e-6 + 3 * last * kEpsilon);
        kernels.attend_block(q.start, row, queries, group, k16.start, v16.start, stride, head_dim, length, scale,
                             out.start, row);
        reference.attend_block(q.start, row, queries, group, k16.start, v16.start, stride, head_dim, length, scale,
                               expected.start, row);
        check_close(kernels, "attend_block", out.start, expected.start, queries * row, 0, bound);
        kernels.attend_block_f32(q.start, row, queries, group, k.start, v.start, stride, head_dim, length, scale,
                                 out.start, row);
        reference.attend_block_f32(q.start, row, queries, group, k.start, v.start, stride, head_dim, length, scale,
                                   expected.start, row);
        check_close(kernels, "attend_block_f32", out.start, expected.start, queries * row, 0, bound);
        std::vector<float> scores(last);  // the reference against itself: one query at a time
        const int i = queries - 1;
        reference.attend_f32(q.start + i * row, k.start, v.start, stride, head_dim, last, scale, scores.data(),
                             out.start);
        check_close(reference, "attend_block of one", out.start, expected.start + i * row, head_dim, 0, bound);
      }
}

}  // namespace

void check_elementwise(const Kernels& kernels) {
  test_elementwise(kernels);
  test_halves(kernels);
}

void check_attention(const Kernels& kernels) {
  test_attend(kernels);
  test_attend_block(kernels);
}

}  // namespace wf::checks
