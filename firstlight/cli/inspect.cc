// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/inspect.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/checked_files.h"

namespace firstlight::cli {

namespace {

void append(Inspected& all, Inspected&& more) {
  std::move(more.tensors.begin(), more.tensors.end(), std::back_inserter(all.tensors));
  std::move(more.metadata.begin(), more.metadata.end(), std::back_inserter(all.metadata));
}

void list_tensors(const SafetensorsHeader& header, const std::shared_ptr<const File>& file, const std::string& prefix,
                  Inspected& result) {
  for (const SafetensorsTensor& tensor : header.tensors) {
    result.tensors.push_back({prefix + tensor.name, std::string(safetensors_name(tensor.dtype)), tensor.shape, file,
                              header.data_begin + tensor.begin, tensor.end - tensor.begin});
  }
}

Inspected inspect_rank_checkpoint(const fs::path& out, bool with_data, const std::stop_token& stop) {
  const Manifest manifest = read_manifest(out);
  if (with_data)
    check_files(
        out, manifest, [](const std::string& name) { return name.ends_with(".safetensors"); }, 0, stop);
  Inspected all;
  all.kind = str("rank checkpoint, version ", manifest.version);
  std::string tps;
  for (const ManifestTp& tp : manifest.tps) tps += str(tps.empty() ? "" : ", ", tp.tp);
  all.metadata = {{"architecture", manifest.architecture},
                  {"dtype", manifest.recipe_dtype},
                  {"tp", tps},
                  {"source", manifest.source_kind}};
  for (const ManifestTp& tp : manifest.tps) {
    for (const ManifestRank& rank : tp.ranks) {
      for (const ManifestPart& part : rank.parts) {
        CheckedPart opened = open_part(out, manifest, part);
        list_tensors(opened.header, opened.file, rank.directory + "/", all);
      }
    }
  }
  return all;
}

Inspected inspect_directory(const fs::path& path) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  if (files.empty())
    throw Error(ErrorKind::bad_input, str("'", path.string(), "' holds no safetensors file and no rank checkpoint"));
  std::sort(files.begin(), files.end());
  Inspected all;
  all.kind = "Hugging Face directory";
  for (const fs::path& file : files) append(all, inspect_safetensors_file(file));
  return all;
}

}  // namespace

Inspected inspect_safetensors_file(const fs::path& path) {
  Inspected result;
  result.kind = "safetensors";
  const std::shared_ptr<const File> file = File::open(path);
  const SafetensorsHeader header = read_safetensors_header(*file);
  list_tensors(header, file, "", result);
  result.metadata.assign(header.metadata.begin(), header.metadata.end());
  return result;
}

Inspected inspect(const fs::path& path, bool with_data, const std::stop_token& stop) {
  if (fs::is_directory(path)) {
    const bool is_checkpoint = fs::exists(path / "manifest.json") || fs::exists(path / "READY") ||
                               fs::exists(path / "journal.jsonl");  // not finished, as its reader explains
    return is_checkpoint ? inspect_rank_checkpoint(path, with_data, stop) : inspect_directory(path);
  }
  if (path.extension() == ".safetensors") return inspect_safetensors_file(path);
  // By content, not by name: a GGUF starts with its magic word.
  const std::shared_ptr<const File> file = File::open(path);
  char magic[4] = {};
  if (file->size() >= sizeof magic) file->read(0, std::as_writable_bytes(std::span(magic)));
  return std::string_view(magic, 4) == "GGUF" ? inspect_gguf(path) : inspect_safetensors_file(path);
}

}  // namespace firstlight::cli
