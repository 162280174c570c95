// SPDX-License-Identifier: Apache-2.0
#include <bit>

#include "firstlight/base/str.h"
#include "firstlight/ckpt/gguf.h"
#include "firstlight/cli/inspect.h"

namespace firstlight::cli {

namespace {

constexpr size_t kLongestText = 80;

std::string shortened(std::string_view text) {
  std::string line(text.substr(0, kLongestText));
  while (text.size() > kLongestText && !line.empty() && (text[line.size()] & 0xc0) == 0x80)
    line.pop_back();  // no half character
  for (char& c : line) {
    if (c == '\n' || c == '\r' || c == '\t') c = ' ';
  }
  return text.size() > kLongestText ? str(line, "… (", text.size(), " bytes)") : line;
}

std::string value_text(const GgufMetadata& metadata, const GgufMetadata::Entry& entry) {
  switch (entry.value.type) {
    case GgufValueType::string:
      return shortened(entry.value.text);
    case GgufValueType::array:
      return str("[", entry.value.count, " × ", to_string(entry.value.element), "]");
    case GgufValueType::boolean:
      return *metadata.boolean(entry.key) ? "true" : "false";
    case GgufValueType::f32:
    case GgufValueType::f64:
      return str(*metadata.number(entry.key));
    case GgufValueType::u64:
      return str(entry.value.bits);
    default:
      return str(*metadata.integer(entry.key));
  }
}

}  // namespace

Inspected inspect_gguf(const fs::path& path) {
  const std::unique_ptr<const Gguf> gguf = Gguf::open(path);
  Inspected result;
  result.kind =
      str("GGUF v", gguf->header(0).version, gguf->n_parts() > 1 ? str(" in ", gguf->n_parts(), " parts") : "");
  for (const GgufMetadata::Entry& entry : gguf->metadata().entries()) {
    result.metadata.emplace_back(entry.key, value_text(gguf->metadata(), entry));
  }
  for (const GgufTensor& tensor : gguf->tensors()) {
    result.tensors.push_back({tensor.name, std::string(tensor.type->name), tensor.shape, gguf->file(tensor.part),
                              tensor.offset, tensor.bytes});
  }
  return result;
}

}  // namespace firstlight::cli
