#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

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

// Reads `size` bytes from `offset` on. Throws FormatError when there are fewer.
void read_exactly(int descriptor, const std::string& path, uint64_t offset, char* out, size_t size) {
  constexpr size_t kPiece = size_t{256} << 20;  // read() takes less than 2 GiB at a time
  for (size_t done = 0; done < size;) {
    const ssize_t count =
        ::pread(descriptor, out + done, std::min(kPiece, size - done), static_cast<off_t>(offset + done));
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

void MappedFile::read(uint64_t offset, void* out, size_t bytes) const {
  read_exactly(descriptor_, path_, offset, static_cast<char*>(out), bytes);
}

void MappedFile::unmap() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  data_ = nullptr;
}

std::string read_small_file(const std::string& path, size_t limit) {
  const OpenFile file = open_file(path);
  std::string content;
  try {
    if (file.size > limit) {
      throw FormatError(message(path, ": has ", file.size, " bytes, at most ", limit, " are read"));
    }
    content.resize(static_cast<size_t>(file.size));
    read_exactly(file.descriptor, path, 0, content.data(), content.size());
  } catch (...) {
    ::close(file.descriptor);
    throw;
  }
  ::close(file.descriptor);
  return content;
}

}  // namespace wf
