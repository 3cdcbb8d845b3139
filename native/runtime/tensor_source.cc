#include "tensor_source.h"

#include <array>
#include <cmath>
#include <cstring>

#include "errors.h"
#include "half.h"

namespace wf {

namespace {

struct DtypeInfo {
  const char* name;
  uint64_t bytes;
};

DtypeInfo info(Dtype dtype) {
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

uint64_t element_count(const std::vector<uint64_t>& shape, const std::string& name) {
  uint64_t count = 1;
  for (const uint64_t size : shape) count = checked_product(count, size, name);
  return count;
}

// Words of eight codes each: a byte at a time would take longer than reading them.
bool holds_code_three(const uint8_t* codes, uint64_t bytes) {
  uint64_t seen = 0;
  for (uint64_t i = 0; i < bytes; i += 8) {  // blocks are 256 bytes
    uint64_t word;
    std::memcpy(&word, codes + i, 8);
    seen |= word & (word >> 1) & 0x5555555555555555u;
  }
  return seen != 0;
}

// The byte of t1.6-r16c64 for the five codes of the number n, and which bytes are one.
uint8_t five_trits(uint32_t n) { return static_cast<uint8_t>((256 * n + 242) / 243); }

bool holds_no_five(const uint8_t* codes, uint64_t bytes) {
  static const std::array<uint8_t, 256> wrong = [] {
    std::array<uint8_t, 256> table;
    table.fill(1);
    for (uint32_t n = 0; n < 243; ++n) table[five_trits(n)] = 0;
    return table;
  }();
  uint8_t seen = 0;
  for (uint64_t i = 0; i < bytes; ++i) seen |= wrong[codes[i]];
  return seen != 0;
}

bool all_finite(const std::byte* data, Dtype dtype, uint64_t count) {
  if (dtype == Dtype::kF32) {
    const auto* values = reinterpret_cast<const float*>(data);
    for (uint64_t i = 0; i < count; ++i) {
      if (!std::isfinite(values[i])) return false;
    }
  } else if (dtype == Dtype::kF16) {
    const auto* values = reinterpret_cast<const uint16_t*>(data);
    for (uint64_t i = 0; i < count; ++i) {
      if (!half_is_finite(values[i])) return false;
    }
  }
  return true;
}

class FileSource : public TensorSource {
 public:
  FileSource(const std::string& path, bool keep_mapped) : file_(path, keep_mapped) {}

  bool has(const std::string& name) const override { return file_.tensors().count(name) != 0; }

  const std::byte* get(const std::string& name, Dtype dtype, const std::vector<uint64_t>& shape, Role) override {
    const TensorEntry& entry = find(name);
    if (entry.dtype != info(dtype).name || entry.shape != shape) {
      throw FormatError(message(place(name), ": found ", quoted(entry.dtype), " ", shape_text(entry.shape),
                                ", config.json needs ", info(dtype).name, " ", shape_text(shape)));
    }
    const std::byte* data = file_.data(entry);
    if (reinterpret_cast<uintptr_t>(data) % info(dtype).bytes != 0) {
      throw FormatError(message(place(name), ": starts at an offset that is no multiple of ", info(dtype).bytes,
                                " bytes; write tensors in order of decreasing alignment"));
    }
    if (!all_finite(data, dtype, element_count(shape, name))) {
      throw FormatError(place(name) + ": found an infinity or NaN; the file is damaged or training diverged");
    }
    used_.insert(name);
    return data;
  }

  const uint8_t* codes(const std::string& name, const CodesShape& shape) override {
    const auto* data = reinterpret_cast<const uint8_t*>(get(name, Dtype::kU8, shape.dimensions(), Role::kTable));
    const uint64_t fives = shape.layout == TernaryLayout::kFiveTrits
                               ? static_cast<uint64_t>(shape.column_blocks / kBlocksPerFive) * kBytesPerFive
                               : 0;
    for (int32_t i = 0; i < shape.row_blocks; ++i) {
      const uint8_t* row = data + static_cast<uint64_t>(i) * shape.row_bytes();
      if (holds_no_five(row, fives)) {
        throw FormatError(place(name) + ": found a byte that stands for no five codes; the file is damaged");
      }
      if (holds_code_three(row + fives, shape.row_bytes() - fives)) {
        throw FormatError(place(name) + ": found the unused bit pattern 3; the file is damaged");
      }
    }
    return data;
  }

  void finish() const override {
    for (const auto& item : file_.tensors()) {
      if (used_.count(item.first) == 0) {
        throw FormatError(place(item.first) +
                          ": config.json has no use for this tensor; leaving it out would change "
                          "the model, so it is refused");
      }
    }
  }

 private:
  std::string place(const std::string& name) const { return file_.path() + ": " + quoted(name); }

  const TensorEntry& find(const std::string& name) const {
    const auto entry = file_.tensors().find(name);
    if (entry == file_.tensors().end()) throw FormatError(place(name) + ": is missing, config.json asks for it");
    return entry->second;
  }

  SafetensorsFile file_;
  std::unordered_set<std::string> used_;
};

// splitmix64, Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014.
uint64_t next_random(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

class RandomSource : public TensorSource {
 public:
  RandomSource(const ModelConfig& config, uint64_t seed) : config_(config), state_(seed) {
    for (int byte = 0; byte < 256; ++byte) {
      if ((byte & (byte >> 1) & 0x55) == 0) code_bytes_.push_back(static_cast<uint8_t>(byte));
    }
  }

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
    const uint64_t bytes = checked_product(count, info(dtype).bytes, name);
    // uint64_t elements: new aligns them for every type, and 7 bytes of tail are within one element.
    blocks_.push_back(std::make_unique<uint64_t[]>(bytes / 8 + 1));
    auto* data = reinterpret_cast<std::byte*>(blocks_.back().get());
    fill(data, dtype, count, role);
    return data;
  }

  const uint8_t* codes(const std::string& name, const CodesShape& shape) override {
    const std::byte* data = get(name, Dtype::kU8, shape.dimensions(), Role::kTable);
    auto* codes = const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(data));
    const uint64_t fives = shape.layout == TernaryLayout::kFiveTrits
                               ? static_cast<uint64_t>(shape.column_blocks / kBlocksPerFive) * kBytesPerFive
                               : 0;
    for (uint64_t i = 0; i < shape.bytes(); ++i) {
      codes[i] = i % shape.row_bytes() < fives ? five_trits(static_cast<uint32_t>(next_random(state_) % 243))
                                               : code_bytes_[next_random(state_) % code_bytes_.size()];
    }
    return codes;
  }

  void finish() const override {}

 private:
  void fill(std::byte* data, Dtype dtype, uint64_t count, Role role) {
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t random = next_random(state_);
      const float unit = static_cast<float>(random >> 40) * 0x1p-24f;  // [0, 1)
      if (dtype == Dtype::kU8) {
        data[i] = static_cast<std::byte>(random);
      } else if (dtype == Dtype::kF16) {
        // 0.02 to 0.04: exponent -6 or -5 with a random fraction, always finite
        const auto half = static_cast<uint16_t>(0x2400u | (random >> 32 & 0x3ffu));
        std::memcpy(data + 2 * i, &half, 2);
      } else {
        const float value = role == Role::kNorm         ? 0.5f + unit
                            : role == Role::kBias       ? unit - 0.5f
                            : role == Role::kTableScale ? 0.0002f + 0.0001f * unit
                                                        : 0.02f + 0.02f * unit;
        std::memcpy(data + 4 * i, &value, 4);
      }
    }
  }

  const ModelConfig config_;
  uint64_t state_;
  std::vector<uint8_t> code_bytes_;
  std::vector<std::unique_ptr<uint64_t[]>> blocks_;
};

}  // namespace

std::vector<uint64_t> CodesShape::dimensions() const {
  const auto rows = static_cast<uint64_t>(row_blocks);
  if (layout == TernaryLayout::kTwoBit) return {rows, static_cast<uint64_t>(column_blocks), kBytesPerBlock};
  return {rows, row_bytes()};
}

std::unique_ptr<TensorSource> file_source(const std::string& path, bool keep_mapped) {
  return std::make_unique<FileSource>(path, keep_mapped);
}

std::unique_ptr<TensorSource> random_source(const ModelConfig& config, uint64_t seed) {
  return std::make_unique<RandomSource>(config, seed);
}

}  // namespace wf
