// SPDX-License-Identifier: Apache-2.0
// For the tests of checkpoint readers: expected failures, throw-away directories, and hand-made files of both formats.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>

#include "firstlight/base/error.h"
#include "firstlight/io/file.h"

namespace firstlight::testing_util {

/// Runs fn, expects an Error of that kind whose message has `part`, and gives the message.
template <class Fn>
std::string expect_error(ErrorKind kind, std::string_view part, Fn&& fn) {
  try {
    fn();
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.kind()), to_string(kind)) << error.what();
    EXPECT_NE(std::string_view(error.what()).find(part), std::string_view::npos)
        << "no '" << part << "' in: " << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown, expected " << to_string(kind) << " with '" << part << "'";
  return {};
}

class TempDir {
 public:
  TempDir() {
    std::string name = (fs::temp_directory_path() / "firstlight-test-XXXXXX").native();
    if (::mkdtemp(name.data()) == nullptr) throw Error(ErrorKind::io, "mkdtemp");
    path_ = name;
  }
  ~TempDir() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const fs::path& path() const { return path_; }
  fs::path put(const std::string& name, std::string_view content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
    return path_ / name;
  }

 private:
  fs::path path_;
};

template <class T>
std::string bytes_of(T value) {
  std::string out(sizeof value, '\0');
  std::memcpy(out.data(), &value, sizeof value);
  return out;
}

/// A whole safetensors file with this header text.
inline std::string safetensors_file(std::string_view header, size_t data_bytes) {
  return bytes_of(static_cast<uint64_t>(header.size())) + std::string(header) + std::string(data_bytes, '\x11');
}

/// A GGUF put together by hand; nothing is checked.
struct GgufText {
  uint32_t version = 3;
  std::string keys, tensors, data;
  uint64_t n_keys = 0, n_tensors = 0;
  uint64_t alignment = 32;

  static std::string text(std::string_view s) { return bytes_of(static_cast<uint64_t>(s.size())) + std::string(s); }
  GgufText& key(std::string_view name, uint32_t type, std::string_view raw) {
    keys += text(name) + bytes_of(type) + std::string(raw);
    ++n_keys;
    return *this;
  }
  GgufText& tensor(std::string_view name, std::initializer_list<uint64_t> dims, uint32_t type, uint64_t offset) {
    tensors += text(name) + bytes_of(static_cast<uint32_t>(dims.size()));
    for (const uint64_t n : dims) tensors += bytes_of(n);
    tensors += bytes_of(type) + bytes_of(offset);
    ++n_tensors;
    return *this;
  }
  std::string file() const {
    std::string out = "GGUF" + bytes_of(version) + bytes_of(n_tensors) + bytes_of(n_keys) + keys + tensors;
    out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out + data;
  }
};

}  // namespace firstlight::testing_util
