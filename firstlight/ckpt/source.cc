// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/source.h"

#include <array>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/gguf_source.h"
#include "firstlight/ckpt/hf_source.h"

namespace firstlight {

namespace {

bool begins_with_gguf(const fs::path& path) {
  const auto file = File::open(path);
  std::array<char, 4> magic{};
  if (file->size() < magic.size()) return false;
  file->read(0, std::as_writable_bytes(std::span(magic)));
  return std::string_view(magic.data(), magic.size()) == "GGUF";
}

}  // namespace

ModelKind model_kind(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found)
    throw Error(ErrorKind::not_found, str("'", path.native(), "': no such file or directory"));
  if (error) throw_errno(error.value(), "open", path.native());
  const auto has = [&](const char* name) {
    std::error_code failure;
    const bool found = fs::exists(path / name, failure);
    if (failure) throw_errno(failure.value(), "open", (path / name).native());  // a folder that may not be looked into
    return found;
  };
  if (fs::is_directory(status)) {
    // journal.jsonl: a conversion that was not finished, which the rank checkpoint's reader explains.
    if (has("READY") || has("manifest.json") || has("journal.jsonl")) return ModelKind::rank_checkpoint;
    if (has("config.json")) return ModelKind::hf_directory;
    throw Error(
        ErrorKind::bad_input,
        str("'", path.native(), "' is neither a rank checkpoint (READY) nor a Hugging Face directory (config.json)"));
  }
  if (begins_with_gguf(path)) return ModelKind::gguf;
  throw Error(ErrorKind::bad_input, str("'", path.native(), "' is neither a GGUF nor a directory",
                                        path.extension() == ".safetensors" ? "; give the directory it is in" : ""));
}

std::unique_ptr<Source> open_source(const fs::path& path) {
  try {
    switch (model_kind(path)) {
      case ModelKind::gguf:
        return std::make_unique<GgufSource>(path);
      case ModelKind::hf_directory:
        return std::make_unique<HfSource>(path);
      case ModelKind::rank_checkpoint:
        break;
    }
  } catch (const fs::filesystem_error& error) {
    throw_errno(error.code().value(), "open", path.native());
  }
  throw Error(ErrorKind::bad_input,
              str("'", path.native(), "' is a rank checkpoint already, expected a Hugging Face directory or a GGUF"));
}

}  // namespace firstlight
