#include "kv_cache.h"

#include <sys/mman.h>

#include <new>

namespace wf {

uint64_t KvCache::bytes(const ModelConfig& config, int32_t context, KvType type) {
  // at most 2 * 2^10 layers * 2^20 (1024 heads of 1024) * 2^24 positions * 4 bytes = 2^57
  return uint64_t{2} * static_cast<uint64_t>(config.num_hidden_layers) * static_cast<uint64_t>(config.kv_width()) *
         static_cast<uint64_t>(context) * (type == KvType::kF16 ? 2 : 4);
}

KvCache::KvCache(const ModelConfig& config, int32_t context, KvType type)
    : heads_(static_cast<size_t>(config.num_key_value_heads)),
      head_dim_(static_cast<size_t>(config.head_dim)),
      context_(static_cast<size_t>(context)),
      half_(static_cast<size_t>(config.num_hidden_layers) * heads_ * context_ * head_dim_),
      bytes_(static_cast<size_t>(bytes(config, context, type))) {
  void* memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = memory;
}

KvCache::~KvCache() { ::munmap(memory_, bytes_); }

}  // namespace wf
