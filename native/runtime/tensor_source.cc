#include "tensor_source.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "errors.h"
#include "huge_memory.h"
#include "load_tasks.h"
#include "safetensors.h"

namespace wf {

namespace {

constexpr uint64_t kPieceBytes = uint64_t{1} << 20;  // of one task: stays in a core's cache from reading to checking

uint64_t element_count(const std::vector<uint64_t>& shape, const std::string& name) {
  uint64_t count = 1;
  for (const uint64_t size : shape) count = checked_product(count, size, name);
  return count;
}

// Whether no exponent is all ones. Eight bytes at a time: scales are up to a ninth of a model.
bool all_finite(const std::byte* data, Dtype dtype, uint64_t bytes) {
  const bool half = dtype == Dtype::kF16;
  const uint64_t exponents = half ? 0x7c007c007c007c00u : 0x7f8000007f800000u;
  const uint64_t lowest = half ? 0x0400040004000400u : 0x0080000000800000u;
  uint64_t seen = 0;
  const auto look = [&](const std::byte* at, uint64_t count) {
    uint64_t word = 0;
    std::memcpy(&word, at, count);
    seen |= (word & exponents) + lowest;  // the carry out of an exponent of ones is the sign bit's place
  };
  uint64_t i = 0;
  for (; i + 8 <= bytes; i += 8) look(data + i, 8);
  if (i < bytes) look(data + i, bytes - i);
  return (seen & (half ? 0x8000800080008000u : 0x8000000080000000u)) == 0;
}

class FileSource : public TensorSource {
 public:
  FileSource(const std::string& path, bool keep_mapped, int threads)
      : file_(path), keep_mapped_(keep_mapped), threads_(threads) {}

  bool has(const std::string& name) const override { return file_.tensors().count(name) != 0; }

  const std::byte* get(const std::string& name, Dtype dtype, const std::vector<uint64_t>& shape, Role) override {
    const TensorEntry& entry = checked(name, dtype, shape);
    const uint64_t bytes = entry.end - entry.begin;
    const auto where = place(name);
    std::byte* own = keep_mapped_ ? nullptr : reinterpret_cast<std::byte*>(arena_.allocate(bytes));
    const std::byte* data = keep_mapped_ ? file_.file().data() + file_.offset(entry) : own;
    for (uint64_t start = 0; start < bytes; start += kPieceBytes) {
      auto task = [=, this, &entry, piece = std::min(kPieceBytes, bytes - start)] {
        if (own != nullptr) file_.file().read(file_.offset(entry) + start, own + start, piece);
        if (dtype == Dtype::kU8 || all_finite(data + start, dtype, piece)) return;
        throw FormatError(where + ": found an infinity or NaN; the file is damaged or training diverged");
      };
      if (dtype == Dtype::kF32) {
        task();
      } else {
        tasks_.add(std::move(task));
      }
    }
    return data;
  }

  const uint8_t* codes(const std::string& name, const CodesShape& shape, TernaryLayout wanted) override {
    const TensorEntry& entry = checked(name, Dtype::kU8, shape.dimensions());
    const bool convert = wanted != shape.layout;
    const uint64_t row_bytes = shape.row_bytes();
    const uint64_t out_bytes = CodesShape{1, shape.column_blocks, wanted}.row_bytes();
    const bool own = convert || !keep_mapped_;  // then nothing is touched through the mapping
    uint8_t* out = own ? arena_.allocate(static_cast<uint64_t>(shape.row_blocks) * out_bytes) : nullptr;
    const auto* mapped = reinterpret_cast<const uint8_t*>(file_.file().data()) + file_.offset(entry);
    const auto step = static_cast<int32_t>(std::max<uint64_t>(1, kPieceBytes / row_bytes));
    for (int32_t row = 0; row < shape.row_blocks; row += step) {
      const int32_t rows = std::min(step, shape.row_blocks - row);
      tasks_.add([=, this, &entry, where = place(name)] {
        const uint64_t start = static_cast<uint64_t>(row) * row_bytes;
        const uint64_t bytes = static_cast<uint64_t>(rows) * row_bytes;
        std::vector<uint8_t> stored;  // what is converted does not stay
        const uint8_t* data = mapped + start;
        uint8_t* target = out + static_cast<uint64_t>(row) * out_bytes;
        if (own) {
          if (convert) stored.resize(bytes);
          uint8_t* copy = convert ? stored.data() : target;
          file_.file().read(file_.offset(entry) + start, copy, bytes);
          data = copy;
        }
        if (const char* fault = codes_fault(data, shape, rows)) throw FormatError(where + ": " + fault);
        if (convert) convert_codes(data, shape, rows, target);
      });
    }
    return own ? out : mapped;
  }

  void finish() override {
    for (const auto& item : file_.tensors()) {
      if (used_.count(item.first) == 0) {
        throw FormatError(place(item.first) +
                          ": config.json has no use for this tensor; leaving it out would change "
                          "the model, so it is refused");
      }
    }
    tasks_.run(threads_);
    if (!keep_mapped_) file_.file().unmap();
  }

 private:
  std::string place(const std::string& name) const { return file_.path() + ": " + quoted(name); }

  const TensorEntry& checked(const std::string& name, Dtype dtype, const std::vector<uint64_t>& shape) {
    const auto found = file_.tensors().find(name);
    if (found == file_.tensors().end()) throw FormatError(place(name) + ": is missing, config.json asks for it");
    const TensorEntry& entry = found->second;
    if (entry.dtype != dtype_info(dtype).name || entry.shape != shape) {
      throw FormatError(message(place(name), ": found ", quoted(entry.dtype), " ", shape_text(entry.shape),
                                ", config.json needs ", dtype_info(dtype).name, " ", shape_text(shape)));
    }
    if (file_.offset(entry) % dtype_info(dtype).bytes != 0) {
      throw FormatError(message(place(name), ": starts at an offset that is no multiple of ", dtype_info(dtype).bytes,
                                " bytes; write tensors in order of decreasing alignment"));
    }
    used_.insert(name);
    return entry;
  }

  SafetensorsFile file_;
  const bool keep_mapped_;
  const int threads_;
  HugeArena arena_;
  LoadTasks tasks_;
  std::unordered_set<std::string> used_;
};

// splitmix64, Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014.
uint64_t next_random(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Words of random bits, of which those in `keep` are kept and those in `set` are ones. Room for a whole last word.
void fill_words(uint8_t* out, uint64_t bytes, uint64_t seed, uint64_t keep, uint64_t set) {
  for (uint64_t i = 0; i < bytes; i += 8) {
    const uint64_t word = (next_random(seed) & keep) | set;
    std::memcpy(out + i, &word, 8);
  }
}

class RandomSource : public TensorSource {
 public:
  RandomSource(const ModelConfig& config, uint64_t seed, int threads)
      : config_(config), threads_(threads), state_(seed) {}

  bool has(const std::string& name) const override {
    const auto contains = [&](const char* part) { return name.find(part) != std::string::npos; };
    if (contains(".eps")) return false;
    if (contains("_sub_norm")) return config_.sub_norms;
    if (contains("q_norm") || contains("k_norm")) return config_.qk_norm;
    if (contains("lm_head")) return config_.tie_known && !config_.tie_word_embeddings;
    if (!contains(".bias")) return true;
    if (contains("mlp.")) return config_.mlp_bias;
    return contains("o_proj") ? config_.o_bias : config_.qkv_bias;
  }

  const std::byte* get(const std::string& name, Dtype dtype, const std::vector<uint64_t>& shape, Role role) override {
    const uint64_t count = element_count(shape, name);
    const uint64_t bytes = checked_product(count, dtype_info(dtype).bytes, name);
    uint8_t* data = arena_.allocate(bytes);
    if (dtype == Dtype::kF32) {
      fill_floats(data, count, role);
    } else {
      // Halves: 0.02 to 0.03 for weights, 0.001 to 0.002 for the scales of a table, whose numbers are up to 32.
      const uint64_t keep = dtype == Dtype::kU8 ? ~uint64_t{0} : 0x03ff03ff03ff03ffu;
      const uint64_t signs = dtype == Dtype::kF16 && role == Role::kTable ? 0x8000800080008000u : 0;
      const uint64_t exponent = dtype == Dtype::kU8         ? 0
                                : role == Role::kTableScale ? 0x1400140014001400u
                                                            : 0x2400240024002400u;
      for (uint64_t start = 0; start < bytes; start += kPieceBytes) {
        tasks_.add([=, seed = next_random(state_), piece = std::min(kPieceBytes, bytes - start)] {
          fill_words(data + start, piece, seed, keep | signs, exponent);
        });
      }
    }
    return reinterpret_cast<const std::byte*>(data);
  }

  const uint8_t* codes(const std::string&, const CodesShape& stored, TernaryLayout wanted) override {
    const CodesShape shape{stored.row_blocks, stored.column_blocks, wanted};
    const uint64_t row_bytes = shape.row_bytes();
    uint8_t* data = arena_.allocate(shape.bytes());
    const auto step = static_cast<int32_t>(std::max<uint64_t>(1, kPieceBytes / row_bytes));
    for (int32_t row = 0; row < shape.row_blocks; row += step) {
      tasks_.add([=, seed = next_random(state_), rows = std::min(step, shape.row_blocks - row)] {
        uint8_t* out = data + static_cast<uint64_t>(row) * row_bytes;
        fill_words(out, static_cast<uint64_t>(rows) * row_bytes, seed, ~uint64_t{0}, 0);
        make_codes_valid(out, shape, rows);
      });
    }
    return data;
  }

  void finish() override { tasks_.run(threads_); }

 private:
  void fill_floats(uint8_t* out, uint64_t count, Role role) {
    for (uint64_t i = 0; i < count; ++i) {
      const float unit = static_cast<float>(next_random(state_) >> 40) * 0x1p-24f;  // [0, 1)
      const float value = role == Role::kNorm         ? 0.5f + unit
                          : role == Role::kBias       ? unit - 0.5f
                          : role == Role::kTableScale ? 0.0002f + 0.0001f * unit
                                                      : 0.02f + 0.02f * unit;
      std::memcpy(out + 4 * i, &value, 4);
    }
  }

  const ModelConfig config_;
  const int threads_;
  uint64_t state_;
  HugeArena arena_;
  LoadTasks tasks_;
};

}  // namespace

DtypeInfo dtype_info(Dtype dtype) {
  switch (dtype) {
    case Dtype::kU8:
      return {"U8", 1};
    case Dtype::kF16:
      return {"F16", 2};
    case Dtype::kF32:
      return {"F32", 4};
  }
  return {"?", 1};
}

std::unique_ptr<TensorSource> file_source(const std::string& path, bool keep_mapped, int threads) {
  return std::make_unique<FileSource>(path, keep_mapped, threads);
}

std::unique_ptr<TensorSource> random_source(const ModelConfig& config, uint64_t seed, int threads) {
  return std::make_unique<RandomSource>(config, seed, threads);
}

}  // namespace wf
