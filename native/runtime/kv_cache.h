// The keys and values of one sequence: [layer][kv head][position][head_dim], K then V, then for int8 the scales of
// both.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "model_config.h"

namespace wf {

class KvCache {
 public:
  // Reserves address space; a page takes memory when its position is first written. With huge pages reading is half as
  // fast again (13 against 8 GB/s measured), but a short sequence takes a large part of the whole: each head of each
  // layer has a region of its own. Throws std::bad_alloc.
  KvCache(const ModelConfig& config, int32_t context, KvType type, bool huge_pages);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // Bytes of one cache; below 2^63 for every ModelConfig and context.
  static uint64_t bytes(const ModelConfig& config, int32_t context, KvType type);

  int32_t length() const { return length_; }  // positions in use
  void set_length(int32_t length) { length_ = length; }

  // Holds then what `other`, a cache of the same model and context, holds in its first `positions` positions.
  void copy_prefix(const KvCache& other, int32_t positions) noexcept;

  // What one key-value head of a layer holds, from position 0 on.
  KvView view(int32_t layer, int32_t head) const;
  // Writes the key and value [head_dim] of one position.
  void store(const Kernels& kernels, int32_t layer, int32_t head, int32_t position, const float* key,
             const float* value) noexcept;

 private:
  size_t heads_, head_dim_, context_;
  size_t rows_;  // layers * heads * context: of K
  KvType type_;
  size_t bytes_;
  char* memory_ = nullptr;
  int32_t length_ = 0;
};

}  // namespace wf
