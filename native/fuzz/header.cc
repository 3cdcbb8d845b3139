// Any bytes as a safetensors file, which lies in memory.
#include <sys/mman.h>

#include "fuzz/fuzz.h"
#include "runtime/safetensors.h"

namespace {

const int kFile = ::memfd_create("fuzz", MFD_CLOEXEC);
const std::string kPath = "/proc/self/fd/" + std::to_string(kFile);

// Each byte of the data belongs to one tensor, and to the file.
void check(wf::SafetensorsFile& file, size_t size) {
  uint64_t covered = 0;
  for (const auto& [name, entry] : file.tensors()) {
    fuzz::require(entry.begin <= entry.end && file.offset(entry) + (entry.end - entry.begin) <= size,
                  "a tensor beyond the end of the file");
    covered += entry.end - entry.begin;
    wf::shape_text(entry.shape);
  }
  fuzz::require(covered < size, "tensors that overlap");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::require(::ftruncate(kFile, static_cast<off_t>(size)) == 0, "cannot set the size of the file in memory");
  fuzz::require(::pwrite(kFile, data, size, 0) == static_cast<ssize_t>(size), "cannot write the file in memory");
  fuzz::accepted([&] {
    wf::SafetensorsFile file(kPath);
    check(file, size);
  });
  return 0;
}
