// SPDX-License-Identifier: Apache-2.0
// The safetensors header, parsed as if its author were hostile: https://github.com/huggingface/safetensors (format,
// 2023).
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/base/dtype.h"
#include "firstlight/io/file.h"

namespace firstlight {

struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::bf16;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  ///< bytes within the data section
};

struct SafetensorsHeader {
  std::vector<SafetensorsTensor> tensors;       ///< in order of begin
  std::map<std::string, std::string> metadata;  ///< __metadata__
  uint64_t data_begin = 0;                      ///< offset of the data section in the file
};

/// `head`: the header's JSON (without the 8 length bytes), `data_bytes`: what the file has after it. Refuses
/// (Error{bad_input} naming `path` and the tensor): duplicate keys, overlaps, holes, offsets past the end, sizes that
/// disagree with shape × dtype, overflow, more than 10 M tensors, non-UTF-8, leading spaces; Error{unsupported} for a
/// dtype that is not ours.
SafetensorsHeader parse_safetensors_header(std::string_view head, uint64_t data_bytes, std::string_view path);

/// Reads length and header (at most 100,000,000 bytes) of an open file and parses them.
SafetensorsHeader read_safetensors_header(const File& file);

/// Writes a header of exactly `padded_bytes` in all (length field included; 0: the next multiple of 8), filled up with
/// spaces. Tensors in the given order, contiguous from 0: offsets follow from shapes and dtypes, and begin and end, if
/// end is not 0, must agree (Error{bug}). Error{bad_input} if it does not fit.
std::string make_safetensors_header(const std::vector<SafetensorsTensor>& tensors,
                                    const std::map<std::string, std::string>& metadata, uint64_t padded_bytes);

}  // namespace firstlight
