// The bytes of a file: mapped read-only, read into memory of the caller's, or of a small one as text.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace wf {

// Offsets and sizes are 64 bits. A mapping stays valid when the file is replaced by rename (what our writers do); a
// program that truncates the file in place while it is mapped breaks every process that maps it. What read() gave does
// not depend on the file any more.
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

  // Copies bytes out of the file, not through the mapping. Throws FormatError when the file has become shorter. May be
  // called by several threads at once.
  void read(uint64_t offset, void* out, size_t bytes) const;
  // Forgets the mapping; data() is null from then on. size() and read() stay.
  void unmap();

 private:
  std::string path_;
  int descriptor_ = -1;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole content of a file of at most `limit` bytes. Throws FormatError.
std::string read_small_file(const std::string& path, size_t limit);

}  // namespace wf
