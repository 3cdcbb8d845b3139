#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "errors.h"
#include "huge_memory.h"
#include "load_tasks.h"
#include "safetensors.h"
#include "tensor_source.h"

namespace wf {

namespace {

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

// Where the tensors of a StoredSource lie.
class TensorStore {
 public:
  virtual ~TensorStore() = default;
  virtual const std::string& place() const = 0;
  virtual std::vector<std::string> names() const = 0;
  // Null when there is no such tensor.
  virtual const TensorEntry* find(const std::string& name) const = 0;
  // Its bytes where they can be used as long as the store; null when they are to be read. Throws FormatError for a
  // place in a file that its type cannot have.
  virtual const std::byte* in_place(const std::string& name, const TensorEntry& entry) const = 0;
  // Copies bytes from `start` of a tensor. Several threads may call it at once.
  virtual void read(const std::string& name, const TensorEntry& entry, uint64_t start, void* out,
                    uint64_t bytes) const = 0;
  // Everything has been read.
  virtual void close() = 0;
};

class FileStore : public TensorStore {
 public:
  FileStore(const std::string& path, bool keep_mapped) : file_(path), keep_mapped_(keep_mapped) {}

  const std::string& place() const override { return file_.path(); }

  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& item : file_.tensors()) names.push_back(item.first);
    return names;
  }

  const TensorEntry* find(const std::string& name) const override {
    const auto found = file_.tensors().find(name);
    return found == file_.tensors().end() ? nullptr : &found->second;
  }

  const std::byte* in_place(const std::string& name, const TensorEntry& entry) const override {
    const uint64_t size = entry.dtype == "F32" ? 4 : entry.dtype == "F16" ? 2 : 1;
    if (file_.offset(entry) % size != 0) {
      throw FormatError(message(place(), ": ", quoted(name), ": starts at an offset that is no multiple of ", size,
                                " bytes; write tensors in order of decreasing alignment"));
    }
    return keep_mapped_ ? file_.file().data() + file_.offset(entry) : nullptr;
  }

  void read(const std::string&, const TensorEntry& entry, uint64_t start, void* out, uint64_t bytes) const override {
    file_.file().read(file_.offset(entry) + start, out, bytes);
  }

  void close() override {
    if (!keep_mapped_) file_.file().unmap();
  }

 private:
  SafetensorsFile file_;
  const bool keep_mapped_;
};

class MemoryStore : public TensorStore {
 public:
  MemoryStore(const std::vector<HeldTensor>& tensors, std::shared_ptr<void> owner, std::string place)
      : owner_(std::move(owner)), place_(std::move(place)) {
    for (const HeldTensor& tensor : tensors) {
      uint64_t bytes = tensor.dtype == "F32" ? 4 : tensor.dtype == "F16" ? 2 : 1;
      for (const uint64_t size : tensor.shape) bytes = checked_product(bytes, size, tensor.name);
      const bool fresh = held_.emplace(tensor.name, Held{{tensor.dtype, tensor.shape, 0, bytes}, tensor.data}).second;
      if (!fresh) throw FormatError(place_ + ": " + quoted(tensor.name) + ": appears twice");
    }
  }

  const std::string& place() const override { return place_; }

  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& item : held_) names.push_back(item.first);
    return names;
  }

  const TensorEntry* find(const std::string& name) const override {
    const auto found = held_.find(name);
    return found == held_.end() ? nullptr : &found->second.entry;
  }

  const std::byte* in_place(const std::string& name, const TensorEntry&) const override {
    const std::byte* data = held_.at(name).data;
    return reinterpret_cast<uintptr_t>(data) % kCacheLine == 0 ? data : nullptr;
  }

  void read(const std::string& name, const TensorEntry&, uint64_t start, void* out, uint64_t bytes) const override {
    std::memcpy(out, held_.at(name).data + start, bytes);
  }

  void close() override {}

 private:
  static constexpr uintptr_t kCacheLine = 64;
  struct Held {
    TensorEntry entry;
    const std::byte* data;
  };
  std::shared_ptr<void> owner_;
  std::string place_;
  std::unordered_map<std::string, Held> held_;
};

// Tensors that exist somewhere.
class StoredSource : public TensorSource {
 public:
  StoredSource(std::unique_ptr<TensorStore> store, int threads) : store_(std::move(store)), threads_(threads) {}

  bool has(const std::string& name) const override { return store_->find(name) != nullptr; }

  const std::byte* get(const std::string& name, Dtype dtype, const std::vector<uint64_t>& shape, Role) override {
    const TensorEntry& entry = checked(name, dtype, shape);
    const uint64_t bytes = entry.end - entry.begin;
    const std::byte* stored = store_->in_place(name, entry);
    std::byte* own = stored == nullptr ? reinterpret_cast<std::byte*>(arena_.allocate(bytes)) : nullptr;
    const std::byte* data = stored == nullptr ? own : stored;
    for (uint64_t start = 0; start < bytes; start += kPieceBytes) {
      auto task = [=, this, &entry, piece = std::min(kPieceBytes, bytes - start)] {
        if (own != nullptr) store_->read(name, entry, start, own + start, piece);
        if (dtype == Dtype::kU8 || all_finite(data + start, dtype, piece)) return;
        throw FormatError(place(name) + ": found an infinity or NaN; the file is damaged or training diverged");
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
    const auto* stored = reinterpret_cast<const uint8_t*>(store_->in_place(name, entry));
    const bool own = convert || stored == nullptr;  // then nothing is touched where it lies
    uint8_t* out = own ? arena_.allocate(static_cast<uint64_t>(shape.row_blocks) * out_bytes) : nullptr;
    const auto step = static_cast<int32_t>(std::max<uint64_t>(1, kPieceBytes / row_bytes));
    for (int32_t row = 0; row < shape.row_blocks; row += step) {
      const int32_t rows = std::min(step, shape.row_blocks - row);
      tasks_.add([=, this, &entry] {
        const uint64_t start = static_cast<uint64_t>(row) * row_bytes;
        const uint64_t bytes = static_cast<uint64_t>(rows) * row_bytes;
        std::vector<uint8_t> copied;  // what is converted does not stay
        const uint8_t* data = own ? nullptr : stored + start;
        uint8_t* target = own ? out + static_cast<uint64_t>(row) * out_bytes : nullptr;
        if (own) {
          if (convert) copied.resize(bytes);
          uint8_t* copy = convert ? copied.data() : target;
          store_->read(name, entry, start, copy, bytes);
          data = copy;
        }
        if (const char* fault = codes_fault(data, shape, rows)) throw FormatError(place(name) + ": " + fault);
        if (convert) convert_codes(data, shape, rows, target);
      });
    }
    return own ? out : stored;
  }

  void finish() override {
    for (const std::string& name : store_->names()) {
      if (used_.count(name) == 0) {
        throw FormatError(place(name) +
                          ": config.json has no use for this tensor; leaving it out would change "
                          "the model, so it is refused");
      }
    }
    tasks_.run(threads_);
    store_->close();
  }

 private:
  std::string place(const std::string& name) const { return store_->place() + ": " + quoted(name); }

  const TensorEntry& checked(const std::string& name, Dtype dtype, const std::vector<uint64_t>& shape) {
    const TensorEntry* entry = store_->find(name);
    if (entry == nullptr) throw FormatError(place(name) + ": is missing, config.json asks for it");
    if (entry->dtype != dtype_info(dtype).name || entry->shape != shape) {
      throw FormatError(message(place(name), ": found ", quoted(entry->dtype), " ", shape_text(entry->shape),
                                ", config.json needs ", dtype_info(dtype).name, " ", shape_text(shape)));
    }
    used_.insert(name);
    return *entry;
  }

  std::unique_ptr<TensorStore> store_;
  const int threads_;
  HugeArena arena_;
  LoadTasks tasks_;
  std::unordered_set<std::string> used_;
};

}  // namespace

std::unique_ptr<TensorSource> file_source(const std::string& path, bool keep_mapped, int threads) {
  return std::make_unique<StoredSource>(std::make_unique<FileStore>(path, keep_mapped), threads);
}

std::unique_ptr<TensorSource> memory_source(const std::vector<HeldTensor>& tensors, std::shared_ptr<void> owner,
                                            const std::string& place, int threads) {
  return std::make_unique<StoredSource>(std::make_unique<MemoryStore>(tensors, std::move(owner), place), threads);
}

}  // namespace wf
