#include "kv_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace wf {

namespace {

size_t element_bytes(KvType type) { return type == KvType::kF32 ? 4 : type == KvType::kF16 ? 2 : 1; }

}  // namespace

uint64_t KvCache::bytes(const ModelConfig& config, int32_t context, KvType type) {
  // at most 2 * 2^10 layers * 2^10 heads * 2^24 positions * (2^10 * 4 bytes) = 2^57
  const uint64_t row = static_cast<uint64_t>(config.head_dim) * element_bytes(type) + (type == KvType::kI8 ? 4 : 0);
  return uint64_t{2} * static_cast<uint64_t>(config.num_hidden_layers) *
         static_cast<uint64_t>(config.num_key_value_heads) * static_cast<uint64_t>(context) * row;
}

KvCache::KvCache(const ModelConfig& config, int32_t context, KvType type, bool huge_pages)
    : heads_(static_cast<size_t>(config.num_key_value_heads)),
      head_dim_(static_cast<size_t>(config.head_dim)),
      context_(static_cast<size_t>(context)),
      rows_(static_cast<size_t>(config.num_hidden_layers) * heads_ * context_),
      type_(type),
      bytes_(static_cast<size_t>(bytes(config, context, type))) {
  void* memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
#if defined(MADV_HUGEPAGE)
  if (huge_pages) ::madvise(memory, bytes_, MADV_HUGEPAGE);  // a wish: without them everything works, slower
#else
  static_cast<void>(huge_pages);
#endif
}

KvCache::~KvCache() { ::munmap(memory_, bytes_); }

KvView KvCache::view(int32_t layer, int32_t head) const {
  const size_t row = (static_cast<size_t>(layer) * heads_ + static_cast<size_t>(head)) * context_;
  const size_t row_bytes = head_dim_ * element_bytes(type_);
  KvView view{};
  view.k = memory_ + row * row_bytes;
  view.v = memory_ + (rows_ + row) * row_bytes;
  view.stride = static_cast<int64_t>(head_dim_);
  view.type = type_;
  if (type_ == KvType::kI8) {
    // the codes of all positions end at a multiple of 4: head_dim is even, and there are two rows of each
    const auto* scales = reinterpret_cast<const float*>(memory_ + 2 * rows_ * row_bytes);
    view.k_scales = scales + row;
    view.v_scales = scales + rows_ + row;
  }
  return view;
}

void KvCache::copy_prefix(const KvCache& other, int32_t positions) noexcept {
  const auto count = static_cast<size_t>(positions);
  const size_t row_bytes = head_dim_ * element_bytes(type_);
  const auto copy = [&](const void* to, const void* from, size_t bytes) {
    std::memcpy(const_cast<void*>(to), from, bytes);
  };
  for (size_t head = 0; head < rows_ / context_; ++head) {  // of all layers
    const auto layer = static_cast<int32_t>(head / heads_), index = static_cast<int32_t>(head % heads_);
    const KvView to = view(layer, index), from = other.view(layer, index);
    copy(to.k, from.k, count * row_bytes);
    copy(to.v, from.v, count * row_bytes);
    if (type_ != KvType::kI8) continue;
    copy(to.k_scales, from.k_scales, count * sizeof(float));
    copy(to.v_scales, from.v_scales, count * sizeof(float));
  }
  length_ = positions;
}

void KvCache::store(const Kernels& kernels, int32_t layer, int32_t head, int32_t position, const float* key,
                    const float* value) noexcept {
  const KvView at = view(layer, head);
  const auto width = static_cast<int32_t>(head_dim_);
  const int64_t offset = position * at.stride;
  const auto put = [&](const void* memory, const float* scales, const float* x) {
    void* row =
        const_cast<char*>(static_cast<const char*>(memory)) + offset * static_cast<int64_t>(element_bytes(type_));
    if (type_ == KvType::kF16) kernels.store_f16(x, width, static_cast<uint16_t*>(row));
    if (type_ == KvType::kF32) std::copy(x, x + width, static_cast<float*>(row));
    if (type_ == KvType::kI8) {
      kernels.store_i8(x, width, static_cast<int8_t*>(row), const_cast<float*>(scales) + position);
    }
  };
  put(at.k, at.k_scales, key);
  put(at.v, at.v_scales, value);
}

}  // namespace wf
