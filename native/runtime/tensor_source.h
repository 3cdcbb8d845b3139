// Where the bytes of a model's tensors come from: a packed file, or a seed (for benchmarks without files).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "kernels/kernels.h"
#include "model_config.h"
#include "safetensors.h"

namespace wf {

enum class Dtype : uint8_t { kU8, kF16, kF32 };

// What a tensor is for. A file needs no such hint; a random model draws values that suit it.
enum class Role : uint8_t { kWeightScale, kNorm, kBias, kTable, kTableScale };

// The codes of a ternary matrix, as PackedShape.codes of artifact/packing.py.
struct CodesShape {
  int32_t row_blocks, column_blocks;
  TernaryLayout layout;

  uint64_t row_bytes() const { return static_cast<uint64_t>(row_block_bytes(layout, column_blocks)); }
  uint64_t bytes() const { return static_cast<uint64_t>(row_blocks) * row_bytes(); }
  std::vector<uint64_t> dimensions() const;
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual bool has(const std::string& name) const = 0;
  // The first byte of the tensor, valid as long as the source. Throws FormatError when the tensor is absent, has
  // another type or shape, or holds a value that no kernel may see (infinities, NaN).
  virtual const std::byte* get(const std::string& name, Dtype dtype, const std::vector<uint64_t>& shape, Role role) = 0;
  // The same for the codes of a ternary matrix; bytes that stand for no codes are refused.
  virtual const uint8_t* codes(const std::string& name, const CodesShape& shape) = 0;
  // Throws FormatError when there are tensors that nobody asked for: a part of the model would be left out.
  virtual void finish() const = 0;
};

std::unique_ptr<TensorSource> file_source(const std::string& path, bool keep_mapped);
// Random weights of the architecture `config` describes. Memory: the size of the packed model.
std::unique_ptr<TensorSource> random_source(const ModelConfig& config, uint64_t seed);

}  // namespace wf
