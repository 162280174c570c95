// SPDX-License-Identifier: Apache-2.0
// Typed access to metadata, and opening of files and their parts. Headers are read by pread into memory that the views
// point into: a mapped file could change or shrink under them.
#include "firstlight/ckpt/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <limits>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {

namespace {

// SmolLM2's header has 1.8 MB, Llama 3's 8 MB: one read or two.
constexpr uint64_t kFirstRead = 4u << 20;
constexpr int kReadGrowth = 4;
constexpr int64_t kMostParts = 65535;

[[noreturn]] void wrong_type(std::string_view key, const GgufValue& value, std::string_view expected) {
  throw Error(ErrorKind::bad_input,
              str("GGUF metadata '", key, "' is ", to_string(value.type), ", expected ", expected));
}

/// A scalar's value as an integer; null for other types and for u64 above 2⁶³.
std::optional<int64_t> integer_of(GgufValueType type, uint64_t bits) {
  switch (type) {
    case GgufValueType::u8:
    case GgufValueType::u16:
    case GgufValueType::u32:
      return static_cast<int64_t>(bits);
    case GgufValueType::u64:
      if (bits > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(bits);
    case GgufValueType::i8:
      return static_cast<int8_t>(bits);
    case GgufValueType::i16:
      return static_cast<int16_t>(bits);
    case GgufValueType::i32:
      return static_cast<int32_t>(bits);
    case GgufValueType::i64:
      return static_cast<int64_t>(bits);
    default:
      return std::nullopt;
  }
}

/// "…-00002-of-00005.gguf" → its stem; null if the name does not have that form.
std::optional<std::string> split_stem(const std::string& name, int64_t part, int64_t n_parts) {
  std::array<char, 64> suffix;
  std::snprintf(suffix.data(), suffix.size(), "-%05d-of-%05d.gguf", static_cast<int>(part + 1),
                static_cast<int>(n_parts));
  if (!name.ends_with(suffix.data())) return std::nullopt;
  return name.substr(0, name.size() - std::strlen(suffix.data()));
}

std::string split_name(const std::string& stem, int64_t part, int64_t n_parts) {
  std::array<char, 64> suffix;
  std::snprintf(suffix.data(), suffix.size(), "-%05d-of-%05d.gguf", static_cast<int>(part + 1),
                static_cast<int>(n_parts));
  return stem + suffix.data();
}

}  // namespace

std::string_view to_string(GgufValueType type) noexcept {
  constexpr std::array<std::string_view, 13> kNames{"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                    "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(type)];
}

const GgufValue* GgufMetadata::find(std::string_view key) const noexcept {
  const auto it = std::lower_bound(by_key_.begin(), by_key_.end(), key,
                                   [&](uint32_t i, std::string_view k) { return entries_[i].key < k; });
  return it != by_key_.end() && entries_[*it].key == key ? &entries_[*it].value : nullptr;
}

std::optional<std::string_view> GgufMetadata::text(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufValueType::string) wrong_type(key, *value, "a string");
  return value->text;
}

std::optional<int64_t> GgufMetadata::integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto out = integer_of(value->type, value->bits);
  if (!out) wrong_type(key, *value, "an integer of 63 bits");
  return out;
}

std::optional<double> GgufMetadata::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type == GgufValueType::f32)
    return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(value->bits)));
  if (value->type == GgufValueType::f64) return std::bit_cast<double>(value->bits);
  const auto out = integer_of(value->type, value->bits);
  if (!out) wrong_type(key, *value, "a number");
  return static_cast<double>(*out);
}

std::optional<bool> GgufMetadata::boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufValueType::boolean) wrong_type(key, *value, "a boolean");
  return value->bits != 0;
}

const std::vector<std::string_view>* GgufMetadata::texts(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return nullptr;
  if (value->type != GgufValueType::array || value->element != GgufValueType::string)
    wrong_type(key, *value, "an array of strings");
  return &value->texts;
}

std::optional<std::vector<int64_t>> GgufMetadata::integers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const GgufValueType type = value->element == GgufValueType::boolean ? GgufValueType::u8 : value->element;
  if (value->type != GgufValueType::array || !integer_of(type, 0)) wrong_type(key, *value, "an array of integers");
  std::vector<int64_t> out(value->count);
  const size_t each = value->count == 0 ? 0 : value->raw.size() / value->count;
  for (size_t i = 0; i < out.size(); ++i) {
    uint64_t bits = 0;
    std::memcpy(&bits, value->raw.data() + i * each, each);
    const auto x = integer_of(type, bits);
    if (!x) wrong_type(key, *value, "an array of integers of 63 bits");
    out[i] = *x;
  }
  return out;
}

std::optional<std::vector<float>> GgufMetadata::numbers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const bool is_f32 = value->element == GgufValueType::f32;
  if (value->type != GgufValueType::array || (!is_f32 && value->element != GgufValueType::f64)) {
    wrong_type(key, *value, "an array of f32");
  }
  std::vector<float> out(value->count);
  for (size_t i = 0; i < out.size(); ++i) {
    if (is_f32) {
      std::memcpy(&out[i], value->raw.data() + i * 4, 4);
    } else {
      double x;
      std::memcpy(&x, value->raw.data() + i * 8, 8);
      out[i] = static_cast<float>(x);
    }
  }
  return out;
}

Gguf::Part Gguf::open_part(const fs::path& path) {
  Part part{File::open(path), std::make_unique<std::string>(), {}};
  for (uint64_t want = kFirstRead;; want *= kReadGrowth) {
    const auto have = static_cast<uint64_t>(part.head->size());
    const uint64_t size = std::min(want, part.file->size());
    part.head->resize(size);
    part.file->read(have, std::as_writable_bytes(std::span(*part.head)).subspan(have));
    auto header = parse_gguf_header(*part.head, part.file->size(), part.file->path());
    if (header) {
      part.header = std::move(*header);
      part.file->check_unchanged();
      return part;
    }
    if (size == part.file->size())
      throw Error(ErrorKind::bug, str(path.native(), ": the GGUF parser asks for more than the file"));
  }
}

std::unique_ptr<const Gguf> Gguf::open(const fs::path& path) {
  std::unique_ptr<Gguf> gguf(new Gguf());
  Part given = open_part(path);
  const int64_t n_parts = given.header.metadata.integer("split.count").value_or(1);
  const int64_t number = given.header.metadata.integer("split.no").value_or(0);
  const auto fail = [](const std::string& where, const std::string& what) {
    throw Error(ErrorKind::bad_input, str(where, ": ", what));
  };
  if (n_parts < 0 || n_parts > kMostParts)
    fail(path.native(), str("split.count is ", n_parts, ", expected 1 to ", kMostParts));
  if (n_parts <= 1) {
    gguf->parts_.push_back(std::move(given));
  } else {
    if (number < 0 || number >= n_parts) fail(path.native(), str("split.no is ", number, ", split.count ", n_parts));
    const auto stem = split_stem(path.filename().native(), number, n_parts);
    if (!stem) {
      fail(path.native(), str("part ", number + 1, " of ", n_parts, " must be named '…",
                              split_name("", number, n_parts), "', as its metadata says"));
    }
    for (int64_t i = 0; i < n_parts; ++i) {
      const fs::path part_path = path.parent_path() / split_name(*stem, i, n_parts);
      if (std::error_code ignored; i != number && !fs::exists(part_path, ignored)) {
        throw Error(ErrorKind::not_found,
                    str(part_path.native(), ": part ", i + 1, " of ", n_parts, " of the GGUF is missing"));
      }
      gguf->parts_.push_back(i == number ? std::move(given) : open_part(part_path));
      const GgufMetadata& metadata = gguf->parts_.back().header.metadata;
      const int64_t no = metadata.integer("split.no").value_or(0), count = metadata.integer("split.count").value_or(1);
      if (no != i || count != n_parts) {
        fail(part_path.native(),
             str("its metadata says part ", no + 1, " of ", count, ", expected ", i + 1, " of ", n_parts));
      }
    }
  }
  std::vector<std::string_view> names;
  for (size_t i = 0; i < gguf->parts_.size(); ++i) {
    for (const GgufTensor& tensor : gguf->parts_[i].header.tensors) {
      gguf->tensors_.push_back(tensor);
      gguf->tensors_.back().part = static_cast<int>(i);
      names.push_back(tensor.name);
    }
  }
  if (n_parts > 1) {
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) fail(path.native(), str("tensor '", *twice, "' is in two parts"));
    const auto expected = gguf->metadata().integer("split.tensors.count");
    if (expected && *expected != static_cast<int64_t>(names.size())) {
      fail(path.native(), str("split.tensors.count is ", *expected, ", the parts have ", names.size(), " tensors"));
    }
  }
  return gguf;
}

std::string_view Gguf::header_bytes(int part) const {
  const Part& p = parts_.at(static_cast<size_t>(part));
  return std::string_view(*p.head).substr(0, p.header.data_begin);
}

}  // namespace firstlight
