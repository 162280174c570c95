// SPDX-License-Identifier: Apache-2.0
// One pass of a SAX parser over the header, then one sort by offset that finds holes and overlaps. No tree is built:
// 100 MB of JSON would need a gigabyte of it.
#include "firstlight/ckpt/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/base/utf8.h"
#include "firstlight/ckpt/source_json.h"

namespace firstlight {

namespace {

constexpr uint64_t kMostHeaderBytes = 100'000'000;
constexpr size_t kMostTensors = 10'000'000;
constexpr size_t kMostDims = 8;
constexpr int kMostSkippedLevels = 64;

/// Bytes of a tensor; throws if that is no number of 63 bits.
uint64_t checked_bytes(const SafetensorsTensor& tensor, const std::string& where) {
  uint64_t bytes = size_of(tensor.dtype);
  for (const int64_t n : tensor.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(n), &bytes) || bytes > (1ull << 62)) {
      throw Error(ErrorKind::bad_input, str(where, ": the shape's size in bytes does not fit 63 bits"));
    }
  }
  return bytes;
}

/// Receives the header's events. Where we are in the document is one state: any value that does not belong there is an
/// error.
class HeaderParser : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderParser(std::string_view path, SafetensorsHeader& out) : path_(path), out_(out) {}

  bool null() override { return other("null"); }
  bool boolean(bool) override { return other("a boolean"); }
  bool number_integer(number_integer_t v) override { return other(str("the negative number ", v)); }
  bool number_float(number_float_t, const string_t& text) override { return other("the number " + text); }
  bool binary(binary_t&) override { return other("binary data"); }
  bool number_unsigned(number_unsigned_t v) override {
    if (state_ == State::shape) {
      if (tensor_.shape.size() == kMostDims) fail(str("more than ", kMostDims, " dimensions"));
      if (v > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        fail(str("dimension ", v, " does not fit 63 bits"));
      tensor_.shape.push_back(static_cast<int64_t>(v));
      return true;
    }
    if (state_ == State::offsets) {
      if (n_offsets_ == 2) fail("data_offsets has more than 2 numbers");
      offsets_[n_offsets_++] = v;
      return true;
    }
    return other(str("the number ", v));
  }
  bool string(string_t& v) override {
    if (state_ == State::metadata_value) {
      if (!out_.metadata.emplace(std::move(key_), std::move(v)).second)
        fail("duplicate key '" + key_ + "' in __metadata__");
      state_ = State::metadata;
      return true;
    }
    if (state_ == State::dtype) {
      const auto dtype = dtype_from_safetensors(v);
      if (!dtype) {
        throw Error(ErrorKind::unsupported,
                    str(where(), ": dtype '", v.substr(0, 32), "' is not one that is known here"));
      }
      tensor_.dtype = *dtype;
      state_ = State::entry;
      return true;
    }
    return other("a string");
  }
  bool start_object(size_t) override {
    switch (state_) {
      case State::begin:
        state_ = State::top;
        return true;
      case State::top_value:
        if (in_metadata_) {
          state_ = State::metadata;
          return true;
        }
        state_ = State::entry;
        seen_ = 0;
        n_offsets_ = 0;
        unknown_keys_.clear();
        return true;
      default:
        return nested("an object");
    }
  }
  bool end_object() override {
    if (skipped_levels_ > 0) return leave_nested();
    if (state_ == State::entry) {
      finish_entry();
      state_ = State::top;
    } else {
      state_ = state_ == State::metadata ? State::top : State::end;
    }
    return true;
  }
  bool start_array(size_t) override {
    if (state_ == State::shape_begin) {
      state_ = State::shape;
      return true;
    }
    if (state_ == State::offsets_begin) {
      state_ = State::offsets;
      return true;
    }
    return nested("an array");
  }
  bool end_array() override {
    if (skipped_levels_ > 0) return leave_nested();
    state_ = State::entry;
    return true;
  }
  bool key(string_t& name) override {
    if (skipped_levels_ > 0) return true;
    if (state_ == State::top) return top_key(name);
    if (state_ == State::metadata) {
      key_ = std::move(name);
      state_ = State::metadata_value;
      return true;
    }
    return entry_key(name);
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    throw Error(ErrorKind::bad_input,
                str(path_, ": the safetensors header is not JSON at byte ", position, ": ", error.what()));
  }

 private:
  enum class State {
    begin,
    top,
    top_value,
    metadata,
    metadata_value,
    entry,
    dtype,
    shape_begin,
    shape,
    offsets_begin,
    offsets,
    unknown,
    end
  };
  static constexpr unsigned kDtype = 1, kShape = 2, kOffsets = 4;

  std::string where() const {
    if (in_metadata_) return str(path_, ": __metadata__");
    return tensor_.name.empty() ? std::string(path_) : str(path_, ": tensor '", tensor_.name.substr(0, 200), "'");
  }
  [[noreturn]] void fail(const std::string& what) const { throw Error(ErrorKind::bad_input, where() + ": " + what); }

  bool top_key(string_t& name) {
    in_metadata_ = name == "__metadata__";
    if (in_metadata_ && std::exchange(has_metadata_, true)) fail("appears twice");
    if (!in_metadata_) {
      if (out_.tensors.size() == kMostTensors) fail(str("more than ", kMostTensors, " tensors"));
      tensor_ = {};
      // Valid for other readers, but no model has one, and it could forge lines of a report.
      if (has_control(name)) fail("a tensor's name has a control character");
      tensor_.name = std::move(name);
      if (tensor_.name.empty()) fail("a tensor with an empty name");
    }
    state_ = State::top_value;
    return true;
  }
  bool entry_key(const string_t& name) {
    const auto once = [&](unsigned bit) {
      if ((seen_ & bit) != 0) fail("duplicate key '" + name + "'");
      seen_ |= bit;
    };
    if (name == "dtype") {
      once(kDtype);
      state_ = State::dtype;
    } else if (name == "shape") {
      once(kShape);
      state_ = State::shape_begin;
    } else if (name == "data_offsets") {
      once(kOffsets);
      state_ = State::offsets_begin;
    } else {  // the reference reader skips fields it does not know
      if (std::find(unknown_keys_.begin(), unknown_keys_.end(), name) != unknown_keys_.end())
        fail("duplicate key '" + name + "'");
      if (unknown_keys_.size() == 32) fail("more than 32 unknown fields");
      unknown_keys_.push_back(name);
      state_ = State::unknown;
    }
    return true;
  }
  void finish_entry() {
    if (seen_ != (kDtype | kShape | kOffsets)) fail("dtype, shape or data_offsets is missing");
    if (n_offsets_ != 2) fail("data_offsets has fewer than 2 numbers");
    tensor_.begin = offsets_[0];
    tensor_.end = offsets_[1];
    if (tensor_.begin > tensor_.end) fail(str("data_offsets [", tensor_.begin, ", ", tensor_.end, "] run backwards"));
    const uint64_t bytes = checked_bytes(tensor_, where());
    if (tensor_.end - tensor_.begin != bytes) {
      fail(str("data_offsets span ", tensor_.end - tensor_.begin, " bytes, shape and dtype need ", bytes));
    }
    out_.tensors.push_back(std::move(tensor_));
  }
  /// A value that is neither of the expected kinds: skipped in an unknown field, else an error.
  bool other(const std::string& found) {
    if (skipped_levels_ > 0) return true;
    switch (state_) {
      case State::unknown:
        state_ = State::entry;
        return true;
      case State::metadata_value:
        fail("key '" + key_.substr(0, 200) + "' is " + found + ", expected a string");
      case State::begin:
        fail("the safetensors header is " + found + ", expected an object");
      case State::dtype:
        fail("dtype is " + found + ", expected a string");
      case State::shape_begin:
      case State::shape:
        fail("shape has " + found + ", expected a list of whole numbers");
      case State::offsets_begin:
      case State::offsets:
        fail("data_offsets has " + found + ", expected two whole numbers");
      default:
        fail("is " + found + ", expected an object");
    }
  }
  bool nested(const char* what) {
    if (state_ != State::unknown) return other(what);
    if (++skipped_levels_ > kMostSkippedLevels) fail(str("nested deeper than ", kMostSkippedLevels, " levels"));
    return true;
  }
  bool leave_nested() {
    if (--skipped_levels_ == 0) state_ = State::entry;
    return true;
  }

  std::string_view path_;
  SafetensorsHeader& out_;
  State state_ = State::begin;
  bool in_metadata_ = false, has_metadata_ = false;
  SafetensorsTensor tensor_;
  std::string key_;
  unsigned seen_ = 0;
  std::array<uint64_t, 2> offsets_{};
  size_t n_offsets_ = 0;
  int skipped_levels_ = 0;
  std::vector<std::string> unknown_keys_;
};

void refuse_duplicate_names(const std::vector<SafetensorsTensor>& tensors, std::string_view path) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const auto& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end())
    throw Error(ErrorKind::bad_input, str(path, ": tensor '", twice->substr(0, 200), "' appears twice"));
}

/// Tensors must lie one behind the other from 0 to the end of the file.
void check_offsets(const std::vector<SafetensorsTensor>& tensors, uint64_t data_bytes, std::string_view path) {
  uint64_t at = 0;
  for (const auto& tensor : tensors) {
    if (tensor.begin != at) {
      throw Error(ErrorKind::bad_input,
                  str(path, ": tensor '", tensor.name.substr(0, 200), "' begins at ", tensor.begin, ", expected ", at,
                      tensor.begin < at ? ": it overlaps another" : ": there is a hole before it"));
    }
    at = tensor.end;
    if (at > data_bytes) {
      throw Error(ErrorKind::bad_input, str(path, ": tensor '", tensor.name.substr(0, 200), "' ends at ", at,
                                            " of the data, the file has only ", data_bytes, " bytes of it"));
    }
  }
  if (at != data_bytes) {
    throw Error(ErrorKind::bad_input, str(path, ": ", data_bytes, " bytes of data, the tensors fill only ", at));
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view head, uint64_t data_bytes, std::string_view path) {
  if (head.size() > kMostHeaderBytes) {
    throw Error(ErrorKind::bad_input,
                str(path, ": header of ", head.size(), " bytes, expected at most ", kMostHeaderBytes));
  }
  if (head.empty() || head.front() != '{')
    throw Error(ErrorKind::bad_input, str(path, ": the header does not begin with '{'"));
  // nlohmann's lexer takes a NUL for the end of the text, and line feeds for padding: both would let other readers see
  // another document.
  if (std::memchr(head.data(), 0, head.size()) != nullptr) {
    throw Error(ErrorKind::bad_input, str(path, ": NUL byte in the header; padding is by spaces"));
  }
  const std::string_view document = head.substr(0, head.find_last_not_of(' ') + 1);
  if (document.back() != '}')
    throw Error(ErrorKind::bad_input, str(path, ": the header does not end with '}' and spaces"));
  SafetensorsHeader header;
  HeaderParser parser(path, header);
  nlohmann::json::sax_parse(document.data(), document.data() + document.size(), &parser);
  refuse_duplicate_names(header.tensors, path);
  const auto by_offset = [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  };
  if (!std::is_sorted(header.tensors.begin(), header.tensors.end(), by_offset)) {
    std::sort(header.tensors.begin(), header.tensors.end(), by_offset);
  }
  check_offsets(header.tensors, data_bytes, path);
  header.data_begin = 8 + head.size();
  return header;
}

SafetensorsHeader read_safetensors_header(const File& file) {
  static_assert(std::endian::native == std::endian::little);
  uint64_t n = 0;
  if (file.size() < sizeof n) {
    throw Error(ErrorKind::bad_input,
                str(file.path(), ": ", file.size(), " bytes are no safetensors file (too short for a header)"));
  }
  file.read(0, std::as_writable_bytes(std::span(&n, 1)));
  if (n > kMostHeaderBytes) {
    throw Error(ErrorKind::bad_input, str(file.path(), ": header of ", n, " bytes, expected at most ", kMostHeaderBytes,
                                          " (is it a safetensors file?)"));
  }
  if (n > file.size() - sizeof n) {
    throw Error(ErrorKind::bad_input, str(file.path(), ": header of ", n, " bytes, the file has only ", file.size()));
  }
  std::string head(static_cast<size_t>(n), '\0');
  file.read(sizeof n, std::as_writable_bytes(std::span(head)));
  SafetensorsHeader header = parse_safetensors_header(head, file.size() - sizeof n - n, file.path());
  file.check_unchanged();
  return header;
}

std::string make_safetensors_header(const std::vector<SafetensorsTensor>& tensors,
                                    const std::map<std::string, std::string>& metadata, uint64_t padded_bytes) {
  std::string out(8, '\0');
  out.reserve(std::max<size_t>(padded_bytes, 64 + tensors.size() * 128));
  out += '{';
  if (!metadata.empty()) {
    out += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (out.back() != '{') out += ',';
      append_json_string(out, key);
      out += ':';
      append_json_string(out, value);
    }
    out += '}';
  }
  uint64_t at = 0;
  for (const auto& tensor : tensors) {
    if (out.size() > 9) out += ',';
    append_json_string(out, tensor.name);
    out += ":{\"dtype\":\"";
    out += safetensors_name(tensor.dtype);
    out += "\",\"shape\":[";
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      if (i > 0) out += ',';
      out += std::to_string(tensor.shape[i]);
    }
    const uint64_t end = at + checked_bytes(tensor, tensor.name);
    if (tensor.end != 0 && (tensor.begin != at || tensor.end != end)) {
      throw Error(ErrorKind::bug, str("safetensors header: tensor '", tensor.name, "' at [", tensor.begin, ", ",
                                      tensor.end, "), in order it is at [", at, ", ", end, ")"));
    }
    out += "],\"data_offsets\":[" + std::to_string(at) + "," + std::to_string(end) + "]}";
    at = end;
  }
  out += '}';
  const uint64_t padded = padded_bytes != 0 ? padded_bytes : (out.size() + 7) / 8 * 8;
  if (out.size() > padded || padded - 8 > kMostHeaderBytes) {
    throw Error(ErrorKind::bad_input,
                str("safetensors header of ", out.size(), " bytes does not fit ", padded, " bytes"));
  }
  out.resize(static_cast<size_t>(padded), ' ');
  const uint64_t n = padded - 8;
  std::memcpy(out.data(), &n, sizeof n);
  return out;
}

}  // namespace firstlight
