// Where the bytes of a model's tensors come from: a packed file, or a seed (for benchmarks without files).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "model_config.h"
#include "packed_codes.h"

namespace wf {

enum class Dtype : uint8_t { kU8, kF16, kF32 };

struct DtypeInfo {
  const char* name;  // as a safetensors file has it
  uint64_t bytes;
};
DtypeInfo dtype_info(Dtype dtype);

constexpr uint64_t kPieceBytes = uint64_t{1} << 20;  // of one task: stays in a core's cache from reading to checking

// What a tensor is for. A file needs no such hint; a random model draws values that suit it.
enum class Role : uint8_t { kWeightScale, kNorm, kBias, kTable, kTableScale };

// Tensors of kF32 can be read at once, all others (the big ones) after finish(). All are valid as long as the source.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual bool has(const std::string& name) const = 0;
  // The first byte of the tensor. Throws FormatError when the tensor is absent, has another type or shape, or holds a
  // value that no kernel may see (infinities, NaN); of big tensors finish() does.
  virtual const std::byte* get(const std::string& name, Dtype dtype, const std::vector<uint64_t>& shape, Role role) = 0;
  // The same for the codes of a ternary matrix, which are stored as `shape` says and wanted in the layout `wanted`.
  // Bytes that stand for no codes are refused.
  virtual const uint8_t* codes(const std::string& name, const CodesShape& shape, TernaryLayout wanted) = 0;
  // Completes the big tensors, with several threads. Throws FormatError for what is wrong with them and when there are
  // tensors that nobody asked for: a part of the model would be left out.
  virtual void finish() = 0;
};

// keep_mapped: what need not be converted stays in the page cache, shared with other processes; else everything is
// read into huge pages of this process, which cannot be changed by anybody and is faster to compute with.
std::unique_ptr<TensorSource> file_source(const std::string& path, bool keep_mapped, int threads);

// A tensor that a caller holds in memory. `dtype` as a safetensors file names it.
struct HeldTensor {
  std::string name, dtype;
  std::vector<uint64_t> shape;
  const std::byte* data;
};

// The tensors of a caller, checked as those of a file are. What is aligned to a cache line and need not be converted
// is used where it lies: `owner` keeps it alive as long as the source, and nobody may change it. `place` names it all
// in messages. Throws FormatError for two tensors of one name.
std::unique_ptr<TensorSource> memory_source(const std::vector<HeldTensor>& tensors, std::shared_ptr<void> owner,
                                            const std::string& place, int threads);
// Random weights of the architecture `config` describes, a function of the seed. Memory: the size of the packed model.
std::unique_ptr<TensorSource> random_source(const ModelConfig& config, uint64_t seed, int threads);

}  // namespace wf
