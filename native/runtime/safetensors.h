// A strict reader of one safetensors file. The rules are those of the reference reader: header of at
// most 100 MB, offsets in order, no gap, no overlap, the whole file covered, shape x type equal to the bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "mapped_file.h"

namespace wf {

struct TensorEntry {
  std::string dtype;            // as the file names it: "F32", "U8", ...
  std::vector<uint64_t> shape;  // outermost first
  uint64_t begin = 0;           // bytes from the start of the data
  uint64_t end = 0;
};

class SafetensorsFile {
 public:
  // Throws FormatError for whatever the rules above do not allow.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::unordered_map<std::string, TensorEntry>& tensors() const { return tensors_; }
  // Where an entry starts in the file.
  uint64_t offset(const TensorEntry& entry) const { return data_start_ + entry.begin; }
  // The file itself. Its mapping holds the first byte of an entry at offset(entry).
  MappedFile& file() { return file_; }
  const MappedFile& file() const { return file_; }

 private:
  void read_header();
  void check_coverage() const;

  MappedFile file_;
  uint64_t data_start_ = 0;
  std::unordered_map<std::string, TensorEntry> tensors_;
};

// "[2, 3]" for an error message.
std::string shape_text(const std::vector<uint64_t>& shape);

}  // namespace wf
