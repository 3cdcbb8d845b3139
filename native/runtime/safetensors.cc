#include "safetensors.h"

#include <algorithm>
#include <array>
#include <utility>

#include "errors.h"
#include "json.h"

namespace wf {

namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kLargestHeader = 100'000'000;
// 1024 layers of 32 tensors. With it the parsed header stays below about 60 MB whatever the file says.
constexpr size_t kMostTensors = 32'768;
constexpr size_t kMostDimensions = 8;
constexpr JsonLimits kHeaderLimits{kLargestHeader, 4, kMostTensors * 10};

uint64_t bytes_per_element(std::string_view dtype, std::string_view place) {
  static constexpr std::array<std::pair<std::string_view, uint64_t>, 15> kSizes{{
      {"F64", 8},
      {"F32", 4},
      {"F16", 2},
      {"BF16", 2},
      {"I64", 8},
      {"I32", 4},
      {"I16", 2},
      {"I8", 1},
      {"U64", 8},
      {"U32", 4},
      {"U16", 2},
      {"U8", 1},
      {"BOOL", 1},
      {"F8_E4M3", 1},
      {"F8_E5M2", 1},
  }};
  for (const auto& [name, size] : kSizes) {
    if (name == dtype) return size;
  }
  throw FormatError(message(place, ": unknown dtype ", quoted(dtype)));
}

uint64_t non_negative(const JsonValue& value, const std::string& place) {
  if (!value.is(JsonValue::Kind::kInteger) || value.integer < 0) {
    throw FormatError(message(place, ": found ", kind_name(value.kind), ", a non-negative integer is needed"));
  }
  return static_cast<uint64_t>(value.integer);
}

const JsonValue& array_field(const JsonValue& entry, const char* key, const std::string& place) {
  const JsonValue* value = entry.find(key);
  if (value == nullptr || !value->is(JsonValue::Kind::kArray)) {
    throw FormatError(message(place, ": has no array ", key));
  }
  return *value;
}

TensorEntry parse_entry(const JsonValue& value, const std::string& place) {
  if (!value.is(JsonValue::Kind::kObject) || value.keys.size() != 3) {
    throw FormatError(message(place, ": an object with dtype, shape and data_offsets is needed"));
  }
  TensorEntry entry;
  const JsonValue* dtype = value.find("dtype");
  if (dtype == nullptr || !dtype->is(JsonValue::Kind::kString)) {
    throw FormatError(message(place, ": has no string dtype"));
  }
  entry.dtype = dtype->string;
  const JsonValue& shape = array_field(value, "shape", place);
  if (shape.items.size() > kMostDimensions) {
    throw FormatError(message(place, ": has ", shape.items.size(), " dimensions, at most ", kMostDimensions));
  }
  uint64_t bytes = bytes_per_element(entry.dtype, place);
  for (const JsonValue& item : shape.items) {
    entry.shape.push_back(non_negative(item, place + " shape"));
    bytes = checked_product(bytes, entry.shape.back(), place);
  }
  const JsonValue& offsets = array_field(value, "data_offsets", place);
  if (offsets.items.size() != 2) throw FormatError(message(place, ": data_offsets needs two numbers"));
  entry.begin = non_negative(offsets.items[0], place + " data_offsets");
  entry.end = non_negative(offsets.items[1], place + " data_offsets");
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
    throw FormatError(message(place, ": data_offsets [", entry.begin, ", ", entry.end, "] do not hold the ", bytes,
                              " bytes of ", entry.dtype, " ", shape_text(entry.shape)));
  }
  return entry;
}

}  // namespace

std::string shape_text(const std::vector<uint64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(path) {
  read_header();
  check_coverage();
}

void SafetensorsFile::read_header() {
  if (file_.size() < kLengthBytes) {
    throw FormatError(message(path(), ": has ", file_.size(), " bytes, too few for a safetensors file"));
  }
  uint64_t length = 0;
  for (uint64_t i = 0; i < kLengthBytes; ++i) {
    length |= std::to_integer<uint64_t>(file_.data()[i]) << (8 * i);
  }
  if (length > kLargestHeader || length > file_.size() - kLengthBytes) {
    throw FormatError(message(path(), ": the header says it has ", length, " bytes, the file has ", file_.size(),
                              " and at most ", kLargestHeader, " are read; it is truncated or no safetensors file"));
  }
  data_start_ = kLengthBytes + length;
  const std::string place = path() + ": header";
  const std::string_view text(reinterpret_cast<const char*>(file_.data()) + kLengthBytes, length);
  if (text.empty() || text[0] != '{') throw FormatError(place + ": does not start with '{'");
  const JsonValue header = parse_json(text, place, kHeaderLimits);
  for (size_t i = 0; i < header.keys.size(); ++i) {
    if (header.keys[i] == "__metadata__") continue;
    if (tensors_.size() == kMostTensors) {
      throw FormatError(message(place, ": more than ", kMostTensors, " tensors"));
    }
    tensors_.emplace(header.keys[i], parse_entry(header.items[i], path() + ": " + quoted(header.keys[i])));
  }
}

void SafetensorsFile::check_coverage() const {
  std::vector<const TensorEntry*> ordered;
  for (const auto& item : tensors_) ordered.push_back(&item.second);
  std::sort(ordered.begin(), ordered.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  uint64_t covered = 0;
  for (const TensorEntry* entry : ordered) {
    if (entry->begin != covered) {
      throw FormatError(message(path(), ": a tensor starts at byte ", entry->begin, " of the data where ", covered,
                                " is expected; gaps and overlaps are refused"));
    }
    covered = entry->end;
  }
  const uint64_t available = file_.size() - data_start_;
  if (covered != available) {
    throw FormatError(message(path(), ": the tensors need ", covered, " bytes of data, the file has ", available,
                              "; it is truncated or damaged, copy or export it again"));
  }
}

}  // namespace wf
