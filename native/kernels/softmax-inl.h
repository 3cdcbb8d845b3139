// What the softmax over a vocabulary needs, written once over the vector type `V` (see float_ops-inl.h).
#include "kernels/kernels.h"

namespace wf {
namespace {

// Four chains of sums, so that each is a quarter as long: fewer roundings, and nothing to wait for.
void softmax_sums(const float* x, int32_t n, float* peak, float* total, float* slope) {
  constexpr int32_t kChains = 4, kStep = kChains * kLanes;
  const int32_t whole = n / kStep * kStep;
  F peaks[kChains], totals[kChains], slopes[kChains];
  for (int32_t c = 0; c < kChains; ++c) {
    peaks[c] = V::set1(kNoScore);
    totals[c] = slopes[c] = V::zero();
  }
  for (int32_t i = 0; i < whole; i += kStep)
    for (int32_t c = 0; c < kChains; ++c) peaks[c] = V::max(peaks[c], V::load(x + i + c * kLanes));
  *peak = V::peak(V::max(V::max(peaks[0], peaks[1]), V::max(peaks[2], peaks[3])));
  for (int32_t i = whole; i < n; ++i) *peak = x[i] > *peak ? x[i] : *peak;
  const F top = V::set1(*peak);
  const auto add = [&](int32_t c, F value) {
    const F below = V::max(V::set1(-87.0f), V::sub(value, top));  // in this order x86 keeps a NaN
    const F weight = exp_up_to_88(below);
    totals[c] = V::add(totals[c], weight);
    slopes[c] = V::fma(below, weight, slopes[c]);
  };
  for (int32_t i = 0; i < whole; i += kStep)
    for (int32_t c = 0; c < kChains; ++c) add(c, V::load(x + i + c * kLanes));
  for (int32_t i = whole; i < n; i += kLanes) {
    float rest[kLanes];
    for (int32_t j = 0; j < kLanes; ++j) rest[j] = i + j < n ? x[i + j] : 2 * kNoScore;
    add(i / kLanes % kChains, V::load(rest));
  }
  *total = V::sum(V::add(V::add(totals[0], totals[1]), V::add(totals[2], totals[3])));
  *slope = V::sum(V::add(V::add(slopes[0], slopes[1]), V::add(slopes[2], slopes[3])));
}

}  // namespace
}  // namespace wf
