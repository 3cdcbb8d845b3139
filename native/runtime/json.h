// A small JSON reader for untrusted files: bounded in bytes, depth and number of values, strict about UTF-8,
// numbers and duplicate keys. It reads config.json and the safetensors header, nothing else.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace wf {

struct JsonLimits {
  size_t bytes;   // of the text
  int depth;      // of arrays and objects inside each other
  size_t values;  // of all kinds together; bounds the memory, about 150 bytes a value
};

struct JsonValue {
  enum class Kind : uint8_t { kNull, kBool, kInteger, kReal, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  int64_t integer = 0;            // kInteger only
  double real = 0;                // kInteger and kReal
  std::string string;             // kString
  std::vector<std::string> keys;  // kObject: keys[i] belongs to items[i]; no key occurs twice
  std::vector<JsonValue> items;   // kArray, kObject

  bool is(Kind wanted) const { return kind == wanted; }
  bool is_number() const { return kind == Kind::kInteger || kind == Kind::kReal; }
  // The member `key` of an object, or null when it is absent or this is no object. Linear in the members.
  const JsonValue* find(std::string_view key) const;
};

// The name of a kind as an error message shows it ("an object").
const char* kind_name(JsonValue::Kind kind);

// Throws FormatError with `place` and the byte offset for anything that is not one JSON value within the limits.
JsonValue parse_json(std::string_view text, std::string_view place, const JsonLimits& limits);

}  // namespace wf
