#include "errors.h"

namespace wf {

namespace {
constexpr uint64_t kLargestSize = uint64_t{1} << 63;
}

std::string quoted(std::string_view text) {
  constexpr size_t kShown = 80;
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "'";
  for (const char c : text.substr(0, kShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f && byte != '\'' && byte != '\\') {
      out += c;
    } else {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  return out + (text.size() > kShown ? "...'" : "'");
}

uint64_t checked_product(uint64_t a, uint64_t b, std::string_view place) {
  if (b != 0 && a > (kLargestSize - 1) / b) {
    throw FormatError(message(place, ": the size ", a, " x ", b, " is beyond what any file holds; it is damaged"));
  }
  return a * b;
}

uint64_t checked_sum(uint64_t a, uint64_t b, std::string_view place) {
  if (a >= kLargestSize || b >= kLargestSize - a) {
    throw FormatError(message(place, ": the size ", a, " + ", b, " is beyond what any file holds; it is damaged"));
  }
  return a + b;
}

}  // namespace wf
