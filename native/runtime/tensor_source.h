// Where the bytes of a model's tensors come from: a packed file, or a seed (for benchmarks without files).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "model_config.h"
#include "safetensors.h"

namespace wf {

enum class Dtype : uint8_t { kU8, kI8, kF16, kF32 };

// What a tensor is for. A file needs no such hint; a random model draws values that suit it.
enum class Role : uint8_t { kCodes, kWeightScale, kNorm, kBias, kTable, kTableScale };

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual bool has(const std::string& name) const = 0;
  // The type of a present tensor, to tell the two forms of an embedding apart.
  virtual Dtype dtype(const std::string& name) const = 0;
  // The first byte of the tensor, valid as long as the source. Throws FormatError when the tensor is absent, has
  // another type or shape, or holds a value that no kernel may see (code 3, infinities, NaN).
  virtual const std::byte* get(const std::string& name, Dtype dtype, const std::vector<uint64_t>& shape, Role role) = 0;
  // Throws FormatError when there are tensors that nobody asked for: a part of the model would be left out.
  virtual void finish() const = 0;
};

std::unique_ptr<TensorSource> file_source(const std::string& path, bool keep_mapped);
// Random weights of the architecture `config` describes. Memory: the size of the packed model.
std::unique_ptr<TensorSource> random_source(const ModelConfig& config, uint64_t seed);

}  // namespace wf
