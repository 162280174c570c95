// SPDX-License-Identifier: Apache-2.0
// What every command that opens a rank checkpoint shares: nothing of it is used before it was compared with the
// manifest (docs/rank-checkpoint.md §8 says which command reads which file).
#pragma once
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>

#include "firstlight/ckpt/manifest.h"
#include "firstlight/ckpt/model_config.h"
#include "firstlight/ckpt/safetensors.h"

namespace firstlight {

/// "'path' bytes [begin, end)".
std::string range_text(const std::string& path, uint64_t begin, uint64_t end);

/// The manifest's entry for `tp`. Throws Error{bad_input} for a tp that the model cannot have, Error{not_found} for one
/// that is not stored, naming those that are.
const ManifestTp& stored_tp(const Manifest& manifest, const ModelConfig& config, const fs::path& out, int tp);

/// The header in a part's first header_bytes bytes. Throws Error{damaged} if their hash is not the manifest's,
/// Error{bad_input} if they are no header. `path` is for messages.
SafetensorsHeader parse_part_header(std::string_view bytes, const ManifestPart& part, const std::string& path);

/// Opens a listed part and reads its header, checked.
struct CheckedPart {
  std::shared_ptr<const File> file;
  SafetensorsHeader header;
};
CheckedPart open_part(const fs::path& out, const Manifest& manifest, const ManifestPart& part);

/// Compares size and hash of every listed file that `wanted` names with the manifest, up to n_threads at once (0:
/// usable cores). Throws the first Error{damaged, not_found, io}; Interrupted.
void check_files(const fs::path& out, const Manifest& manifest, const std::function<bool(const std::string&)>& wanted,
                 int n_threads, const std::stop_token& stop);

/// Whether a listed file is of OUT itself ("tokenizer.json") or of one of this tp's rank directories, and neither a
/// part nor leaves: what a load of `tp` does not look at but a reader of it may.
bool is_small_file_of(const Manifest& manifest, int tp, const std::string& name);

}  // namespace firstlight
