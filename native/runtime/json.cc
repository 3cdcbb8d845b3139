#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <locale>
#include <sstream>

#include "errors.h"

namespace wf {

const JsonValue* JsonValue::find(std::string_view key) const {
  for (size_t i = 0; i < keys.size(); ++i) {
    if (keys[i] == key) return &items[i];
  }
  return nullptr;
}

const char* kind_name(JsonValue::Kind kind) {
  switch (kind) {
    case JsonValue::Kind::kNull:
      return "null";
    case JsonValue::Kind::kBool:
      return "a boolean";
    case JsonValue::Kind::kInteger:
      return "an integer";
    case JsonValue::Kind::kReal:
      return "a number";
    case JsonValue::Kind::kString:
      return "a string";
    case JsonValue::Kind::kArray:
      return "an array";
    case JsonValue::Kind::kObject:
      return "an object";
  }
  return "a value";
}

namespace {

// The length of the valid UTF-8 sequence at the start of `text` (RFC 3629: no surrogates, shortest form), or 0.
size_t utf8_sequence(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const unsigned second = byte(1);
  if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F)) return 0;
  if ((lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second > 0x8F)) return 0;
  return length;
}

void append_utf8(uint32_t code, std::string& out) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | code >> 6);
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | code >> 12);
    out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | code >> 18);
    out += static_cast<char>(0x80 | (code >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

class Parser {
 public:
  Parser(std::string_view text, std::string_view place, const JsonLimits& limits)
      : text_(text), place_(place), limits_(limits) {}

  JsonValue document() {
    if (text_.size() > limits_.bytes) {
      fail(message("the text has ", text_.size(), " bytes, at most ", limits_.bytes, " are read"));
    }
    JsonValue value = parse_value(0);
    skip_space();
    if (position_ != text_.size()) fail("found text behind the end of the JSON value");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw FormatError(message(place_, ": byte ", position_, ": ", what));
  }

  char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }

  void skip_space() {
    while (position_ < text_.size()) {
      const char c = text_[position_];
      if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return;
      ++position_;
    }
  }

  void expect(char wanted) {
    if (peek() != wanted || position_ >= text_.size()) {
      fail(message("found ", quoted(text_.substr(position_, 1)), ", expected ", quoted({&wanted, 1})));
    }
    ++position_;
  }

  bool take_word(std::string_view word) {
    if (text_.substr(position_, word.size()) != word) return false;
    position_ += word.size();
    return true;
  }

  JsonValue parse_value(int depth) {
    if (depth > limits_.depth) fail(message("more than ", limits_.depth, " levels of nesting"));
    if (++values_ > limits_.values) fail(message("more than ", limits_.values, " values"));
    skip_space();
    JsonValue value;
    switch (peek()) {
      case '{':
        parse_object(depth, value);
        return value;
      case '[':
        parse_array(depth, value);
        return value;
      case '"':
        value.kind = JsonValue::Kind::kString;
        value.string = parse_string();
        return value;
      default:
        break;
    }
    if (take_word("null")) return value;
    if (take_word("true") || take_word("false")) {
      value.kind = JsonValue::Kind::kBool;
      value.boolean = text_[position_ - 2] == 'u';  // tr-u-e, fal-s-e
      return value;
    }
    parse_number(value);
    return value;
  }

  void parse_object(int depth, JsonValue& value) {
    value.kind = JsonValue::Kind::kObject;
    expect('{');
    skip_space();
    if (peek() == '}') {
      ++position_;
      return;
    }
    while (true) {
      skip_space();
      value.keys.push_back(parse_string());
      skip_space();
      expect(':');
      value.items.push_back(parse_value(depth + 1));
      skip_space();
      if (peek() != ',') break;
      ++position_;
    }
    expect('}');
    refuse_duplicates(value.keys);
  }

  void refuse_duplicates(const std::vector<std::string>& keys) const {
    std::vector<std::string_view> sorted(keys.begin(), keys.end());
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end()) fail(message("the key ", quoted(*twice), " occurs twice in one object"));
  }

  void parse_array(int depth, JsonValue& value) {
    value.kind = JsonValue::Kind::kArray;
    expect('[');
    skip_space();
    if (peek() == ']') {
      ++position_;
      return;
    }
    while (true) {
      value.items.push_back(parse_value(depth + 1));
      skip_space();
      if (peek() != ',') break;
      ++position_;
    }
    expect(']');
  }

  std::string parse_string() {
    expect('"');
    std::string out;
    while (true) {
      if (position_ >= text_.size()) fail("the string has no end");
      const char c = text_[position_];
      if (c == '"') {
        ++position_;
        return out;
      }
      if (static_cast<unsigned char>(c) < 0x20) fail("found a control character in a string");
      if (c == '\\') {
        parse_escape(out);
        continue;
      }
      const size_t length = utf8_sequence(text_.substr(position_));
      if (length == 0) fail("found bytes that are not UTF-8");
      out.append(text_.substr(position_, length));
      position_ += length;
    }
  }

  void parse_escape(std::string& out) {
    ++position_;
    const char c = peek();
    constexpr std::string_view kFrom = "\"\\/bfnrt";
    constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
    const size_t index = kFrom.find(c);
    if (c != '\0' && index != std::string_view::npos) {
      out += kTo[index];
      ++position_;
      return;
    }
    if (c != 'u') fail("found an unknown escape in a string");
    ++position_;
    uint32_t code = parse_hex4();
    if (code >= 0xD800 && code < 0xDC00) {
      if (!take_word("\\u")) fail("found half a surrogate pair");
      const uint32_t low = parse_hex4();
      if (low < 0xDC00 || low > 0xDFFF) fail("found half a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xDC00 && code <= 0xDFFF) {
      fail("found half a surrogate pair");
    }
    append_utf8(code, out);
  }

  uint32_t parse_hex4() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++position_) {
      const char c = peek();
      const uint32_t digit = is_digit(c)              ? c - '0'
                             : (c >= 'a' && c <= 'f') ? c - 'a' + 10
                             : (c >= 'A' && c <= 'F') ? c - 'A' + 10
                                                      : 16;
      if (digit == 16) fail("found a \\u escape without four hexadecimal digits");
      code = code << 4 | digit;
    }
    return code;
  }

  size_t skip_digits() {
    const size_t start = position_;
    while (is_digit(peek())) ++position_;
    return position_ - start;
  }

  void parse_number(JsonValue& value) {
    const size_t start = position_;
    if (peek() == '-') ++position_;
    const bool leading_zero = peek() == '0';
    const size_t digits = skip_digits();
    if (digits == 0 || (leading_zero && digits > 1)) {
      position_ = start;
      fail(message("found ", quoted(text_.substr(start, 12)), ", expected a JSON value"));
    }
    bool integral = true;
    if (peek() == '.') {
      integral = false;
      ++position_;
      if (skip_digits() == 0) fail("found a number without digits behind the point");
    }
    if (peek() == 'e' || peek() == 'E') {
      integral = false;
      ++position_;
      if (peek() == '+' || peek() == '-') ++position_;
      if (skip_digits() == 0) fail("found a number without digits in the exponent");
    }
    convert_number(text_.substr(start, position_ - start), integral, value);
  }

  void convert_number(std::string_view digits, bool integral, JsonValue& value) {
    const char* first = digits.data();
    const char* last = first + digits.size();
    if (integral && std::from_chars(first, last, value.integer).ec == std::errc()) {
      value.kind = JsonValue::Kind::kInteger;
      value.real = static_cast<double>(value.integer);
      return;
    }
    value.kind = JsonValue::Kind::kReal;
    if (digits.size() > 400) fail("found a number of more than 400 characters");
    std::istringstream stream{std::string(digits)};  // the C locale whatever the process has set
    stream.imbue(std::locale::classic());
    stream >> value.real;
    if (stream.fail() || !std::isfinite(value.real)) fail("found a number that a float64 cannot hold");
  }

  std::string_view text_;
  std::string_view place_;
  JsonLimits limits_;
  size_t position_ = 0;
  size_t values_ = 0;
};

}  // namespace

JsonValue parse_json(std::string_view text, std::string_view place, const JsonLimits& limits) {
  return Parser(text, place, limits).document();
}

}  // namespace wf
