#include "huge_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <utility>

namespace wf {

namespace {
constexpr size_t kHugePage = size_t{2} << 20;
constexpr uint64_t kSlab = uint64_t{64} << 20;
constexpr uint64_t kCacheLine = 64;
}  // namespace

HugeMemory::HugeMemory(size_t bytes) {
  const size_t room = bytes + kHugePage;  // for the start to be moved to a huge page
  if (room < bytes) throw std::bad_alloc();
  void* block = ::mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) throw std::bad_alloc();
  mapping_ = block;
  mapped_bytes_ = room;
  const uintptr_t start = (reinterpret_cast<uintptr_t>(block) + kHugePage - 1) / kHugePage * kHugePage;
  data_ = reinterpret_cast<uint8_t*>(start);
#if defined(MADV_HUGEPAGE)
  ::madvise(data_, bytes, MADV_HUGEPAGE);
#endif
}

HugeMemory::~HugeMemory() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapped_bytes_);
}

HugeMemory::HugeMemory(HugeMemory&& other) noexcept { *this = std::move(other); }

HugeMemory& HugeMemory::operator=(HugeMemory&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  std::swap(data_, other.data_);
  return *this;
}

uint8_t* HugeArena::allocate(uint64_t bytes) {
  const uint64_t rounded = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
  if (rounded < bytes) throw std::bad_alloc();
  if (rounded > left_) {
    if (rounded > kSlab / 8) return slabs_.emplace_back(rounded).data();  // alone: wastes no rest of a slab
    next_ = slabs_.emplace_back(kSlab).data();
    left_ = kSlab;
  }
  uint8_t* out = next_;
  next_ += rounded;
  left_ -= rounded;
  return out;
}

}  // namespace wf
