#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <new>

#include "errors.h"

namespace wf {

namespace {

struct OpenFile {
  int descriptor;
  uint64_t size;
};

OpenFile open_file(const std::string& path) {
  // O_NONBLOCK: opening a named pipe must fail the check below, not wait for a writer.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw FormatError(message(path, ": cannot be opened (", std::strerror(errno), ")"));
  struct stat info{};
  const bool known = ::fstat(descriptor, &info) == 0;
  if (!known || !S_ISREG(info.st_mode)) {
    ::close(descriptor);
    throw FormatError(message(path, ": is not an ordinary file"));
  }
  return {descriptor, static_cast<uint64_t>(info.st_size)};
}

// Reads `size` bytes from the start of a file. Throws FormatError when there are fewer.
void read_exactly(int descriptor, const std::string& path, char* out, size_t size) {
  constexpr size_t kPiece = size_t{256} << 20;  // read() takes less than 2 GiB at a time
  for (size_t done = 0; done < size;) {
    const ssize_t count = ::pread(descriptor, out + done, std::min(kPiece, size - done), static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw FormatError(message(path, ": cannot be read (", std::strerror(errno), ")"));
    if (count == 0) throw FormatError(message(path, ": became shorter while it was read; try again"));
    done += static_cast<size_t>(count);
  }
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const OpenFile file = open_file(path);
  descriptor_ = file.descriptor;
  size_ = static_cast<size_t>(file.size);
  try {
    if (size_ == 0) throw FormatError(message(path, ": is empty; copy or export the model again"));
    void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor_, 0);
    if (mapped == MAP_FAILED) throw FormatError(message(path, ": cannot be mapped (", std::strerror(errno), ")"));
    ::madvise(mapped, size_, MADV_WILLNEED);
    mapping_ = mapped;
    mapped_bytes_ = size_;
    data_ = static_cast<const std::byte*>(mapped);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

MappedFile::~MappedFile() {
  unmap();
  ::close(descriptor_);
}

void MappedFile::unmap() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapped_bytes_);
}

void MappedFile::read_into_memory() {
  constexpr size_t kHugePage = size_t{2} << 20;
  const auto memory = static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  if (size_ > memory) {
    throw FormatError(message(path_, ": has ", size_ >> 20, " MiB, this machine has ", memory >> 20, " MiB of memory"));
  }
  const size_t room = size_ + kHugePage;  // for the start to be moved to a huge page
  void* block = ::mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) throw std::bad_alloc();
  const uintptr_t start = (reinterpret_cast<uintptr_t>(block) + kHugePage - 1) / kHugePage * kHugePage;
  auto* target = reinterpret_cast<char*>(start);
#if defined(MADV_HUGEPAGE)
  ::madvise(target, size_, MADV_HUGEPAGE);
#endif
  try {
    read_exactly(descriptor_, path_, target, size_);
  } catch (...) {
    ::munmap(block, room);
    throw;
  }
  unmap();
  mapping_ = block;
  mapped_bytes_ = room;
  data_ = reinterpret_cast<const std::byte*>(target);
}

std::string read_small_file(const std::string& path, size_t limit) {
  const OpenFile file = open_file(path);
  std::string content;
  try {
    if (file.size > limit) {
      throw FormatError(message(path, ": has ", file.size, " bytes, at most ", limit, " are read"));
    }
    content.resize(static_cast<size_t>(file.size));
    read_exactly(file.descriptor, path, content.data(), content.size());
  } catch (...) {
    ::close(file.descriptor);
    throw;
  }
  ::close(file.descriptor);
  return content;
}

}  // namespace wf
