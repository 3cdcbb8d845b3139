#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "errors.h"

namespace wf {

namespace {

// An open descriptor of an ordinary file, closed at the end of the scope.
struct OpenFile {
  explicit OpenFile(const std::string& path) {
    // O_NONBLOCK: opening a named pipe must fail the check below, not wait for a writer.
    descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) throw FormatError(message(path, ": cannot be opened (", std::strerror(errno), ")"));
    struct stat info {};
    const bool known = ::fstat(descriptor, &info) == 0;
    if (!known || !S_ISREG(info.st_mode)) {
      ::close(descriptor);
      throw FormatError(message(path, ": is not an ordinary file"));
    }
    size = static_cast<uint64_t>(info.st_size);
  }
  ~OpenFile() { ::close(descriptor); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  int descriptor = -1;
  uint64_t size = 0;
};

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const OpenFile file(path);
  if (file.size == 0) throw FormatError(message(path, ": is empty; copy or export the model again"));
  size_ = static_cast<size_t>(file.size);
  void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.descriptor, 0);
  if (mapped == MAP_FAILED) throw FormatError(message(path, ": cannot be mapped (", std::strerror(errno), ")"));
  ::madvise(mapped, size_, MADV_WILLNEED);
  data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::~MappedFile() { ::munmap(const_cast<std::byte*>(data_), size_); }

std::string read_small_file(const std::string& path, size_t limit) {
  const OpenFile file(path);
  if (file.size > limit) {
    throw FormatError(message(path, ": has ", file.size, " bytes, at most ", limit, " are read"));
  }
  std::string content(static_cast<size_t>(file.size), '\0');
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t count = ::read(file.descriptor, content.data() + done, content.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw FormatError(message(path, ": cannot be read (", std::strerror(errno), ")"));
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  content.resize(done);
  return content;
}

}  // namespace wf
