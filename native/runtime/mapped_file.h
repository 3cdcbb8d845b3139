// A file mapped read-only, or a small one read whole.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace wf {

// Offsets and sizes are 64 bits. The mapping stays valid when the file is replaced by rename (what our writers do);
// a program that truncates the file in place while it is mapped breaks every process that maps it.
class MappedFile {
 public:
  // Throws FormatError when the path cannot be opened or is no ordinary, non-empty file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole content of a file of at most `limit` bytes. Throws FormatError.
std::string read_small_file(const std::string& path, size_t limit);

}  // namespace wf
