// SPDX-License-Identifier: Apache-2.0
// firstlight inspect: tensors, types, shapes and metadata; with --hash sha256 also what the stored bytes are.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/base/utf8.h"
#include "firstlight/cli/arguments.h"
#include "firstlight/cli/context.h"
#include "firstlight/cli/inspect.h"

namespace firstlight::cli {

namespace {

struct InspectOptions {
  std::string path, hash;
  bool json = false, metadata = false;
};

std::string sha256_of(const InspectedTensor& tensor, std::stop_token stop) {
  std::vector<std::byte> piece(std::min<uint64_t>(tensor.size_bytes, 4u << 20));
  Sha256 sha;
  for (uint64_t at = 0; at < tensor.size_bytes; at += piece.size()) {
    if (stop.stop_requested()) throw Interrupted();
    const auto n = static_cast<size_t>(std::min<uint64_t>(piece.size(), tensor.size_bytes - at));
    tensor.file->read(tensor.offset + at, std::span(piece).first(n));
    sha.update(std::span<const std::byte>(piece).first(n));
  }
  return sha.hex();
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t n : shape) text += str(text.empty() ? "" : ", ", n);
  return "[" + text + "]";
}

int run_inspect(Context& context, const InspectOptions& options) {
  context.json = options.json;
  const Inspected found = inspect(options.path, !options.hash.empty(), context.stop);
  std::vector<std::string> hashes(found.tensors.size());
  if (!options.hash.empty()) {
    ThreadPool pool(usable_cores());
    std::atomic<size_t> next{0};
    pool.run([&](int) {
      for (size_t i; (i = next.fetch_add(1)) < found.tensors.size();)
        hashes[i] = sha256_of(found.tensors[i], context.stop);
    });
  }
  if (options.json) {
    nlohmann::ordered_json all = nlohmann::ordered_json::object();
    if (options.metadata) {
      for (const auto& [key, value] : found.metadata) all[key] = value;
    } else {
      // Names are unique; all[name] would look through every name before it (80,000 tensors: 8 s).
      auto& members = all.get_ref<nlohmann::ordered_json::object_t&>();
      for (size_t i = 0; i < found.tensors.size(); ++i) {
        nlohmann::ordered_json entry = {{"dtype", found.tensors[i].dtype}, {"shape", found.tensors[i].shape}};
        if (!options.hash.empty()) entry["sha256"] = hashes[i];
        members.emplace_back(found.tensors[i].name, std::move(entry));
      }
    }
    print_json(all);
    return 0;
  }
  std::string out = found.kind + "\n";
  for (const auto& [key, value] : found.metadata) out += str("  ", key, " = ", value, "\n");
  uint64_t bytes = 0;
  size_t width = 0;
  for (const InspectedTensor& tensor : found.tensors) width = std::max(width, tensor.name.size());
  for (size_t i = 0; i < found.tensors.size(); ++i) {
    const InspectedTensor& tensor = found.tensors[i];
    bytes += tensor.size_bytes;
    out += str(tensor.name, std::string(width - tensor.name.size(), ' '), "  ", tensor.dtype, " ",
               shape_text(tensor.shape), options.hash.empty() ? "" : "  ", hashes[i], "\n");
  }
  out += str(found.tensors.size(), " tensors, ", human_bytes(static_cast<double>(bytes)), "\n");
  print(printable(out));
  return 0;
}

}  // namespace

void add_inspect(CLI::App& app, Action& chosen) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command = app.add_subcommand(
      "inspect", "Tensors, types, shapes and metadata of a safetensors file, a GGUF, a directory or a rank checkpoint");
  command->add_option("PATH", options->path, "What to look at")->required();
  command->add_option("--hash", options->hash, "sha256 of each tensor's stored bytes")->check(one_of({"sha256"}));
  command->add_flag("--metadata", options->metadata, "With --json: the metadata instead of the tensors");
  command->add_flag("--json", options->json, "One JSON object on stdout: {name: {dtype, shape, sha256}}");
  command->footer("Example:\n  firstlight inspect model.gguf --hash sha256");
  command->callback(
      [options, &chosen] { chosen = [options](Context& context) { return run_inspect(context, *options); }; });
}

}  // namespace firstlight::cli
