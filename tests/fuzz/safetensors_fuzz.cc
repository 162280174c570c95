// SPDX-License-Identifier: Apache-2.0
// A whole safetensors file: it is refused with an Error, or its tensors tile the data and a header written from them
// reads back the same.
#include <cstdlib>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/ckpt/safetensors.h"

using namespace firstlight;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint64_t n = 0;
  if (size < sizeof n) return 0;
  std::memcpy(&n, data, sizeof n);
  // A mutated length seldom fits: then all that follows is header and no data.
  if (n > size - sizeof n) n = size - sizeof n;
  const std::string_view head(reinterpret_cast<const char*>(data) + sizeof n, n);
  const uint64_t data_bytes = size - sizeof n - n;
  SafetensorsHeader header;
  try {
    header = parse_safetensors_header(head, data_bytes, "fuzz");
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::bad_input && error.kind() != ErrorKind::unsupported) std::abort();
    return 0;
  }
  uint64_t at = 0;
  for (const SafetensorsTensor& tensor : header.tensors) {
    uint64_t bytes = size_of(tensor.dtype);
    for (const int64_t dim : tensor.shape) bytes *= static_cast<uint64_t>(dim);
    if (tensor.begin != at || tensor.end != at + bytes) std::abort();
    at = tensor.end;
  }
  if (at != data_bytes) std::abort();
  const std::string again = make_safetensors_header(header.tensors, header.metadata, 0);
  const auto back = parse_safetensors_header(std::string_view(again).substr(8), data_bytes, "again");
  if (back.tensors.size() != header.tensors.size() || back.metadata != header.metadata) std::abort();
  return 0;
}
