// SPDX-License-Identifier: Apache-2.0
// The header parser. Every length is compared with what the file still holds before it is used, so memory is bounded by
// a small multiple of the header, and 64-bit sums are checked: unchecked ones were the root of CVE-2024-21802,
// CVE-2025-53630, CVE-2026-27940 and GHSA-96jg in other readers.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/base/utf8.h"
#include "firstlight/ckpt/gguf.h"
#include "firstlight/ckpt/source_json.h"

namespace firstlight {

namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint64_t kMostHeaderBytes = 256u << 20;  // Llama 3's 128k tokens and 280k merges take 8 MB
constexpr uint64_t kMostTensors = 10'000'000;
constexpr uint64_t kMostNameBytes = 65535;
constexpr uint64_t kMostAlignment = 1u << 20;
constexpr uint32_t kMostDims = 4;
constexpr int kMostLevels = 4;  // of arrays in arrays

/// Thrown by the cursor when the header goes on behind the bytes at hand; never leaves this file.
struct MoreNeeded {};

/// Bytes of a scalar, 0 for strings, arrays and unknown types.
uint64_t scalar_bytes(GgufValueType type) {
  switch (type) {
    case GgufValueType::u8:
    case GgufValueType::i8:
    case GgufValueType::boolean:
      return 1;
    case GgufValueType::u16:
    case GgufValueType::i16:
      return 2;
    case GgufValueType::u32:
    case GgufValueType::i32:
    case GgufValueType::f32:
      return 4;
    case GgufValueType::u64:
    case GgufValueType::i64:
    case GgufValueType::f64:
      return 8;
    default:
      return 0;
  }
}

uint64_t align_up(uint64_t x, uint64_t alignment) { return (x + alignment - 1) & ~(alignment - 1); }

}  // namespace

class GgufParser {
 public:
  GgufParser(std::string_view head, uint64_t file_bytes, std::string_view path)
      : head_(head), file_bytes_(file_bytes), path_(path) {}

  GgufHeader parse() {
    GgufHeader header;
    const auto [n_tensors, n_keys] = preamble(header);
    auto& entries = header.metadata.entries_;
    for (uint64_t i = 0; i < n_keys; ++i) {
      const std::string_view key = text(kMostNameBytes, "a metadata key");
      if (key.empty() || key.find('\0') != key.npos) fail("a metadata key is empty or has a NUL byte");
      where_ = key;
      entries.push_back({key, {}});
      value(entries.back().value, value_type(), 0);
    }
    where_ = {};
    index_keys(header.metadata);
    read_alignment(header);
    for (uint64_t i = 0; i < n_tensors; ++i) header.tensors.push_back(tensor());
    where_ = {};
    refuse_duplicate_tensors(header.tensors);
    place(header);
    return header;
  }

 private:
  [[noreturn]] void fail(const std::string& what, ErrorKind kind = ErrorKind::bad_input) const {
    throw Error(kind, where_.empty() ? str(path_, ": ", what) : str(path_, ": '", where_.substr(0, 200), "': ", what));
  }
  uint64_t left_in_file() const { return file_bytes_ - at_; }

  /// Moves over n bytes.
  std::string_view bytes(uint64_t n, const char* what) {
    if (n > left_in_file())
      fail(str(what, " of ", n, " bytes at offset ", at_, " passes the end of the file (", file_bytes_, " bytes)"));
    if (n > kMostHeaderBytes || at_ > kMostHeaderBytes - n)
      fail(str("the header is larger than ", kMostHeaderBytes, " bytes"));
    if (n > head_.size() - at_) throw MoreNeeded{};
    const std::string_view out = head_.substr(at_, n);
    at_ += n;
    return out;
  }
  template <class T>
  T number(const char* what) {
    T x;
    std::memcpy(&x, bytes(sizeof x, what).data(), sizeof x);
    return x;
  }
  std::string_view text(uint64_t most, const char* what) {
    const auto n = number<uint64_t>("a string's length");
    if (n > most) fail(str(what, " of ", n, " bytes, expected at most ", most));
    const std::string_view out = bytes(n, what);
    if (!is_utf8(out)) fail(str(what, " at offset ", at_ - n, " is not UTF-8"));
    return out;
  }

  std::pair<uint64_t, uint64_t> preamble(GgufHeader& header) {
    if (bytes(4, "the magic") != "GGUF") fail("not a GGUF file (it does not begin with 'GGUF')");
    header.version = number<uint32_t>("the version");
    if ((header.version & 0xffffu) == 0 && header.version != 0) {
      fail("a big-endian GGUF is not supported", ErrorKind::unsupported);
    }
    if (header.version != 2 && header.version != 3) {
      fail(str("GGUF version ", header.version, " is not supported (2 and 3 are)"), ErrorKind::unsupported);
    }
    const auto n_tensors = number<uint64_t>("the number of tensors"), n_keys = number<uint64_t>("the number of keys");
    // The smallest tensor entry has 32 + 1 bytes, the smallest key 8 + 1 + 4 + 1.
    if (n_tensors > kMostTensors || n_tensors > left_in_file() / 33)
      fail(str(n_tensors, " tensors are more than the file can hold"));
    if (n_keys > left_in_file() / 14) fail(str(n_keys, " metadata keys are more than the file can hold"));
    return {n_tensors, n_keys};
  }

  GgufValueType value_type() {
    const auto type = number<uint32_t>("a value's type");
    if (type > static_cast<uint32_t>(GgufValueType::f64)) fail(str("unknown value type ", type));
    return static_cast<GgufValueType>(type);
  }

  void value(GgufValue& out, GgufValueType type, int level) {
    out.type = type;
    if (type == GgufValueType::string) {
      out.text = text(kMostHeaderBytes, "a string");
    } else if (type == GgufValueType::array) {
      array(out, level + 1);
    } else {
      const std::string_view raw = bytes(scalar_bytes(type), "a value");
      std::memcpy(&out.bits, raw.data(), raw.size());
      if (type == GgufValueType::boolean) check_booleans(raw);
    }
  }

  void array(GgufValue& out, int level) {
    if (level > kMostLevels) fail(str("arrays nested deeper than ", kMostLevels, " levels"));
    out.element = value_type();
    out.count = number<uint64_t>("an array's length");
    const uint64_t each = scalar_bytes(out.element);
    // A string needs 8 bytes at least, an array 12.
    const uint64_t least = each != 0 ? each : out.element == GgufValueType::string ? 8 : 12;
    if (out.count > left_in_file() / least)
      fail(str("an array of ", out.count, " elements passes the end of the file"));
    const uint64_t begin = at_;
    if (each != 0) {
      out.raw = bytes(out.count * each, "an array");
      if (out.element == GgufValueType::boolean) check_booleans(out.raw);
      return;
    }
    if (out.element == GgufValueType::string) {
      if (out.count > (head_.size() - at_) / least) throw MoreNeeded{};  // before memory is taken for it
      out.texts.reserve(out.count);
      for (uint64_t i = 0; i < out.count; ++i) out.texts.push_back(text(kMostHeaderBytes, "a string"));
    } else {
      for (uint64_t i = 0; i < out.count; ++i) {
        GgufValue ignored;
        value(ignored, GgufValueType::array, level);
      }
    }
    out.raw = head_.substr(begin, at_ - begin);
  }

  void check_booleans(std::string_view raw) const {
    for (const char c : raw) {
      if (c != 0 && c != 1)
        fail(str("boolean is ", static_cast<int>(static_cast<unsigned char>(c)), ", expected 0 or 1"));
    }
  }

  void index_keys(GgufMetadata& metadata) const {
    const auto& entries = metadata.entries_;
    auto& order = metadata.by_key_;
    order.resize(entries.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return entries[a].key < entries[b].key; });
    for (size_t i = 1; i < order.size(); ++i) {
      if (entries[order[i]].key == entries[order[i - 1]].key)
        fail(str("metadata key '", entries[order[i]].key.substr(0, 200), "' appears twice"));
    }
  }

  void read_alignment(GgufHeader& header) const {
    const GgufValue* value = header.metadata.find("general.alignment");
    if (value == nullptr) return;
    if (value->type != GgufValueType::u32) fail(str("general.alignment is ", to_string(value->type), ", expected u32"));
    header.alignment = value->bits;
    if (!std::has_single_bit(header.alignment) || header.alignment < 8 || header.alignment > kMostAlignment) {
      fail(str("general.alignment is ", header.alignment, ", expected a power of two from 8 to ", kMostAlignment));
    }
  }

  /// A tensor's entry; `offset` is still relative to the data section.
  GgufTensor tensor() {
    GgufTensor tensor;
    where_ = {};
    tensor.name = text(kMostNameBytes, "a tensor's name");
    if (tensor.name.empty() || has_control(tensor.name)) fail("a tensor's name is empty or has a control character");
    where_ = head_.substr(at_ - tensor.name.size(), tensor.name.size());
    const auto n_dims = number<uint32_t>("the number of dimensions");
    if (n_dims == 0 || n_dims > kMostDims) fail(str(n_dims, " dimensions, expected 1 to ", kMostDims));
    uint64_t elements = 1;
    for (uint32_t i = 0; i < n_dims; ++i) {
      const auto n = number<uint64_t>("a dimension");
      if (n == 0) fail("a dimension is 0");
      if (__builtin_mul_overflow(elements, n, &elements) || elements > (1ull << 56)) fail("more than 2⁵⁶ elements");
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(n));
    }
    const auto type = number<uint32_t>("a tensor's type");
    tensor.type = find_ggml_type(type);
    if (tensor.type == nullptr) fail(str("tensor type ", type, " is not known"), ErrorKind::unsupported);
    const auto row = static_cast<uint64_t>(tensor.shape.back());
    if (row % tensor.type->block_elements != 0) {
      fail(str("rows of ", row, " elements are no whole blocks of ", tensor.type->block_elements, " (",
               tensor.type->name, ")"));
    }
    tensor.bytes = elements / tensor.type->block_elements * tensor.type->block_bytes;  // < 2⁵⁶ × 8
    tensor.offset = number<uint64_t>("a tensor's offset");
    return tensor;
  }

  void refuse_duplicate_tensors(const std::vector<GgufTensor>& tensors) const {
    std::vector<std::string_view> names(tensors.size());
    std::transform(tensors.begin(), tensors.end(), names.begin(),
                   [](const GgufTensor& t) { return std::string_view(t.name); });
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) fail(str("tensor '", twice->substr(0, 200), "' appears twice"));
  }

  /// Tensors must follow each other, each at the next aligned offset, and end where the file ends; offsets become those
  /// in the file.
  void place(GgufHeader& header) const {
    header.data_begin = align_up(at_, header.alignment);
    if (header.tensors.empty()) return;
    if (header.data_begin > file_bytes_) fail("the file ends before the data section");
    const uint64_t data_bytes = file_bytes_ - header.data_begin;
    std::vector<GgufTensor*> order;
    for (GgufTensor& tensor : header.tensors) order.push_back(&tensor);
    std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->offset < b->offset; });
    uint64_t end = 0;
    for (GgufTensor* tensor : order) {
      const auto bad = [&](const std::string& what) { fail(str("tensor '", tensor->name.substr(0, 200), "' ", what)); };
      const uint64_t expected = align_up(end, header.alignment);
      if (tensor->offset % header.alignment != 0)
        bad(str("at offset ", tensor->offset, " is not aligned to ", header.alignment));
      if (tensor->offset != expected) {
        bad(str("is at offset ", tensor->offset, ", expected ", expected,
                tensor->offset < end ? ": it overlaps another" : ": there is a hole before it"));
      }
      if (tensor->bytes > data_bytes || tensor->offset > data_bytes - tensor->bytes) {
        bad(str("of ", tensor->bytes, " bytes at offset ", tensor->offset, " passes the end of the file (", data_bytes,
                " bytes of data)"));
      }
      end = tensor->offset + tensor->bytes;
      tensor->offset += header.data_begin;
    }
    if (data_bytes > align_up(end, header.alignment)) fail(str(data_bytes - end, " bytes follow the last tensor"));
  }

  std::string_view head_;
  uint64_t file_bytes_;
  std::string_view path_;
  std::string_view where_;  // key or tensor that is being read
  uint64_t at_ = 0;
};

std::optional<GgufHeader> parse_gguf_header(std::string_view head, uint64_t file_bytes, std::string_view path) {
  try {
    return GgufParser(head.substr(0, file_bytes), file_bytes, path).parse();
  } catch (const MoreNeeded&) {
    return std::nullopt;
  }
}

}  // namespace firstlight
