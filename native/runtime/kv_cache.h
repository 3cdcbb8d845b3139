// The keys and values of one sequence, float16 or float32: [layer][kv head][position][head_dim], K then V.
#pragma once
#include <cstddef>
#include <cstdint>

#include "model_config.h"

namespace wf {

enum class KvType : uint8_t { kF16, kF32 };

class KvCache {
 public:
  // Reserves address space; a page takes memory when its position is first written. Throws std::bad_alloc.
  KvCache(const ModelConfig& config, int32_t context, KvType type);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // Bytes of one cache; below 2^63 for every ModelConfig and context.
  static uint64_t bytes(const ModelConfig& config, int32_t context, KvType type);

  int32_t length() const { return length_; }  // positions in use
  void set_length(int32_t length) { length_ = length; }

  // The element [layer][head][position][0]; rows of one head are head_dim elements apart.
  uint16_t* keys_f16(int32_t layer, int32_t head, int32_t position) const {
    return static_cast<uint16_t*>(memory_) + offset(layer, head, position);
  }
  uint16_t* values_f16(int32_t layer, int32_t head, int32_t position) const {
    return keys_f16(layer, head, position) + half_;
  }
  float* keys_f32(int32_t layer, int32_t head, int32_t position) const {
    return static_cast<float*>(memory_) + offset(layer, head, position);
  }
  float* values_f32(int32_t layer, int32_t head, int32_t position) const {
    return keys_f32(layer, head, position) + half_;
  }

 private:
  size_t offset(int32_t layer, int32_t head, int32_t position) const {
    return ((static_cast<size_t>(layer) * heads_ + static_cast<size_t>(head)) * context_ +
            static_cast<size_t>(position)) *
           head_dim_;
  }

  size_t heads_, head_dim_, context_;
  size_t half_;  // elements of K
  size_t bytes_;
  void* memory_ = nullptr;
  int32_t length_ = 0;
};

}  // namespace wf
