#include "tensor_source.h"

#include <algorithm>
#include <cstring>

#include "errors.h"
#include "huge_memory.h"
#include "load_tasks.h"

namespace wf {

namespace {

uint64_t element_count(const std::vector<uint64_t>& shape, const std::string& name) {
  uint64_t count = 1;
  for (const uint64_t size : shape) count = checked_product(count, size, name);
  return count;
}

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

std::unique_ptr<TensorSource> random_source(const ModelConfig& config, uint64_t seed, int threads) {
  return std::make_unique<RandomSource>(config, seed, threads);
}

}  // namespace wf
