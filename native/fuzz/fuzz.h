// What the fuzz targets share: the one rule, files in memory, and inputs made of two files.
//
// libFuzzer calls a target with bytes; whatever they are, nothing but wf::FormatError and wf::InputError with a message
// may come out of the code under test, and no sanitizer may object. Everything else ends the process: a find.
#pragma once
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "runtime/errors.h"

namespace fuzz {

inline void require(bool fact, const char* what) {
  if (fact) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

// Calls `work`; true when it was not refused.
template <typename Work>
bool accepted(const Work& work) {
  try {
    work();
    return true;
  } catch (const wf::FormatError& error) {
    require(error.what()[0] != '\0', "an error without a message");
  } catch (const wf::InputError& error) {
    require(error.what()[0] != '\0', "an error without a message");
  }
  return false;
}

inline void write_file(const std::string& path, std::string_view content) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  require(file >= 0, "cannot create a file in TMPDIR");
  require(::write(file, content.data(), content.size()) == static_cast<ssize_t>(content.size()), "cannot write");
  ::close(file);
}

// A directory of this process, below TMPDIR (best one in memory) and left to whoever made that one.
inline std::string own_directory() {
  const char* root = std::getenv("TMPDIR");
  const std::string path =
      std::string(root != nullptr ? root : "/tmp") + "/wrinklefree-fuzz-" + std::to_string(::getpid());
  require(::mkdir(path.c_str(), 0700) == 0, "cannot create a directory in TMPDIR");
  return path;
}

// A packed directory in one input: a byte of options, the length of config.json in four bytes (little endian), the
// text, and the rest is model.safetensors. seeds.py writes the same.
struct Packed {
  uint8_t options = 0;
  std::string config, weights;

  static Packed from(std::string_view input) {
    Packed packed;
    if (input.size() < 5) return packed;
    packed.options = static_cast<uint8_t>(input[0]);
    uint32_t length = 0;
    std::memcpy(&length, input.data() + 1, 4);
    input.remove_prefix(5);
    packed.config = input.substr(0, length);
    packed.weights = input.substr(packed.config.size());
    return packed;
  }

  std::string bytes() const {
    std::string out(5, static_cast<char>(options));
    const auto length = static_cast<uint32_t>(config.size());
    std::memcpy(out.data() + 1, &length, 4);
    return out + config + weights;
  }
};

}  // namespace fuzz
