// Big anonymous memory in huge pages: the one place that asks the system for it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace wf {

// `bytes` of zeroed memory that starts at a 2 MiB boundary, in huge pages where the system grants them: with fewer
// page table look-ups one thread reads weights up to 60 % faster (docs/kernels.md). Memory is taken when it is first
// written. Throws std::bad_alloc.
class HugeMemory {
 public:
  HugeMemory() = default;
  explicit HugeMemory(size_t bytes);
  ~HugeMemory();
  HugeMemory(HugeMemory&& other) noexcept;
  HugeMemory& operator=(HugeMemory&& other) noexcept;

  uint8_t* data() const { return data_; }

 private:
  void* mapping_ = nullptr;  // what munmap gets
  size_t mapped_bytes_ = 0;
  uint8_t* data_ = nullptr;
};

// Pieces of huge memory, handed out one behind the other and freed together.
class HugeArena {
 public:
  // Memory of `bytes`, aligned to a cache line.
  uint8_t* allocate(uint64_t bytes);

 private:
  std::vector<HugeMemory> slabs_;
  uint8_t* next_ = nullptr;
  uint64_t left_ = 0;
};

}  // namespace wf
