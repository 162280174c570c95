// SPDX-License-Identifier: Apache-2.0
// A whole GGUF: it is refused with an Error, or its tensors lie within the file; then its metadata goes on to the
// config and the tokenizer.
#include <cstdlib>

#include "firstlight/base/error.h"
#include "firstlight/ckpt/gguf.h"
#include "firstlight/ckpt/gguf_config.h"
#include "firstlight/ckpt/gguf_source.h"
#include "firstlight/ckpt/gguf_tokenizer.h"

using namespace firstlight;

namespace {

template <class Fn>
void allow_errors(Fn&& fn) {
  try {
    fn();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::bad_input && error.kind() != ErrorKind::unsupported) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  allow_errors([&] {
    // A cut header must ask for more or fail, never read on.
    parse_gguf_header(file.substr(0, size / 2), size, "half");
  });
  allow_errors([&] {
    const auto header = parse_gguf_header(file, size, "fuzz");
    if (!header) std::abort();
    for (const GgufTensor& tensor : header->tensors) {
      if (tensor.offset < header->data_begin || tensor.offset > size || tensor.bytes > size - tensor.offset)
        std::abort();
      if (tensor.offset % header->alignment != 0 || tensor.shape.empty()) std::abort();
      hf_name_of_gguf(tensor.name);
    }
    allow_errors([&] {
      const ModelConfig config = gguf_model_config(header->metadata, header->tensors, {});
      // What is written must be what is read.
      if (parse_hf_config(make_config_json(config, header->metadata)) != config) std::abort();
    });
    allow_errors([&] { make_tokenizer_json(header->metadata); });
    allow_errors([&] { make_tokenizer_config_json(header->metadata, 1); });
  });
  return 0;
}
