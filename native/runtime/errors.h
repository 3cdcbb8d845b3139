// The two errors of the runtime. The bindings turn them into wrinklefree.errors.FormatError and InputError; a
// message says where, what was found, what is allowed and what to do. Nothing here aborts the process.
#pragma once
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace wf {

// A file is not what its format says.
class FormatError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// An argument of a call is wrong.
class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// Text from a file made safe to print: quoted, at most 80 bytes, everything but printable ASCII escaped.
std::string quoted(std::string_view text);

// a * b and a + b of sizes that come from a file; `place` names the field. Throws FormatError when 2^63 is reached.
uint64_t checked_product(uint64_t a, uint64_t b, std::string_view place);
uint64_t checked_sum(uint64_t a, uint64_t b, std::string_view place);

}  // namespace wf
