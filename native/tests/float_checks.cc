// Norms, activations, half precision and attention of a kernel table against the reference.
#include <math.h>
#include <string.h>

#include <algorithm>

#include "tests/checks.h"

namespace wf::checks {
namespace {

// Equal to rms_norm and quantize of the same table, one after the other.
void check_norm_quantize(const Kernels& kernels, const float* x, const float* weight, int n) {
  const size_t blocks = (n + 63) / 64;
  std::vector<float> once(n), twice(n);
  std::vector<int8_t> q(blocks * 64), expected_q(blocks * 64);
  std::vector<int32_t> sums(blocks), expected_sums(blocks);
  float scale = 0, expected_scale = 1;
  kernels.norm_quantize(x, weight, 1e-5f, n, once.data(), q.data(), sums.data(), &scale);
  kernels.rms_norm(x, weight, 1e-5f, n, twice.data());
  kernels.quantize(twice.data(), n, expected_q.data(), expected_sums.data(), &expected_scale);
  if (once != twice || q != expected_q || sums != expected_sums || scale != expected_scale)
    fail(kernels, "norm_quantize " + std::to_string(n));
}

void test_elementwise(const Kernels& kernels) {
  const Kernels& reference = kReferenceKernels;
  for (int n : {1, 7, 8, 9, 31, 64, 100, 576, 1536}) {
    Buffer<float> a(n, 1), b(n, 2), y(n, 3), expected(n, 3);
    for (int i = 0; i < n; ++i) a.start[i] = 4 * normal(), b.start[i] = normal();
    if (n > 8) a.start[3] = 100.0f, a.start[4] = -100.0f, a.start[5] = 0.0f;
    kernels.rms_norm(a.start, b.start, 1e-5f, n, y.start);
    reference.rms_norm(a.start, b.start, 1e-5f, n, expected.start);
    check_close(kernels, "rms_norm", y.start, expected.start, n, (n + 8) * kEpsilon, 0);
    check_norm_quantize(kernels, a.start, b.start, n);
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

// The sums against float64. A chain of float32 sums has at most n / 4 terms of one lane, each with the exponential's
// 2e-7 and, in the slope, one rounding more; the difference to the peak, up to 87, is off by half a unit in its last
// place.
void test_softmax_sums(const Kernels& kernels) {
  for (int n : {1, 2, 3, 15, 16, 31, 64, 65, 127, 128, 1000, 1024})
    for (int kind = 0; kind < 4; ++kind) {  // 1: flat; 2: peaked, with banned tokens; 3: nothing but banned tokens
      Buffer<float> x(n, 1);
      for (int i = 0; i < n; ++i) {
        x.start[i] = kind == 1 ? 3.0f : kind == 2 ? 30 * normal() : 2 * normal();
        if (kind == 3 || (kind == 2 && n > 1 && i % 5 == 0)) x.start[i] = -INFINITY;
      }
      float peak = 0, total = 0, slope = 0;
      kernels.softmax_sums(x.start, n, &peak, &total, &slope);
      float largest = -1e30f;
      for (int i = 0; i < n; ++i) largest = std::max(largest, x.start[i]);
      double sum = 0, weighted = 0, magnitude = 0;
      for (int i = 0; i < n; ++i) {
        const double below = std::max(-87.0, static_cast<double>(x.start[i]) - largest);
        sum += exp(below);
        weighted += below * exp(below);
        magnitude += -below * exp(below) * (1 - below);  // d(below e^below) = (1 + below) e^below d(below)
      }
      const double error = 2e-7 + (n / 4 + 4) * kEpsilon;
      const std::string what = "softmax_sums " + std::to_string(n) + " kind " + std::to_string(kind);
      if (peak != largest) fail(kernels, what + ": peak");
      if (!(fabs(total - sum) <= sum * error + magnitude * kEpsilon + 1e-34)) fail(kernels, what + ": total");
      if (!(fabs(slope - weighted) <= fabs(weighted) * error + 2 * magnitude * kEpsilon + 1e-34))
        fail(kernels, what + ": slope");
      for (float wrong : {NAN, INFINITY}) {
        x.start[uniform(0, n - 1)] = wrong;
        kernels.softmax_sums(x.start, n, &peak, &total, &slope);
        if (slope == slope) fail(kernels, what + ": no number is not seen");
      }
    }
}

}  // namespace

void check_elementwise(const Kernels& kernels) {
  test_elementwise(kernels);
  test_halves(kernels);
  test_softmax_sums(kernels);
}

}  // namespace wf::checks
