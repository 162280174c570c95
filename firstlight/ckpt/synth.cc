// SPDX-License-Identifier: Apache-2.0
// Random weights in a real model's shapes, at the disk's rate.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/ckpt/safetensors.h"
#include "firstlight/ckpt/shard.h"
#include "firstlight/ckpt/shard_digest.h"
#include "firstlight/ckpt/slice_map.h"
#include "firstlight/ckpt/synth_models.h"
#include "firstlight/ckpt/synth_source.h"
#include "firstlight/ckpt/synth_values.h"
#include "firstlight/io/output_file.h"

namespace firstlight {

namespace {

constexpr const char* kIndexName = "model.safetensors.index.json";

constexpr uint64_t kPieceBytes = 2u << 20;  // the buffer of for_each_file

struct SynthFile {
  std::string name, header;
  std::vector<SafetensorsTensor> tensors;
  std::vector<uint64_t> streams;  // where each tensor's counters start
  uint64_t size = 0;
};

/// Parts of at most part_bytes (or one tensor), in layer order.
std::vector<SynthFile> plan_files(const ModelConfig& config, uint64_t part_bytes, uint64_t seed) {
  std::vector<SynthFile> files(1);
  uint64_t data = 0, index = 0;
  for (const ModelTensor& tensor : model_tensors(config)) {
    uint64_t bytes = 2;
    for (const int64_t n : tensor.shape) bytes *= static_cast<uint64_t>(n);
    if (data > 0 && data + bytes > part_bytes) {
      files.emplace_back();
      data = 0;
    }
    files.back().tensors.push_back({tensor.name, DType::bf16, tensor.shape, data, data + bytes});
    files.back().streams.push_back(synth_stream(seed, index++));
    data += bytes;
  }
  for (size_t i = 0; i < files.size(); ++i) {
    std::array<char, 64> name{};
    std::snprintf(name.data(), name.size(), "model-%05zu-of-%05zu.safetensors", i + 1, files.size());
    files[i].name = files.size() == 1 ? "model.safetensors" : name.data();
    const uint64_t exact = make_safetensors_header(files[i].tensors, {{"format", "pt"}}, 0).size();
    // Padded to a page, so that pieces of the file are pages of memory.
    files[i].header = make_safetensors_header(files[i].tensors, {{"format", "pt"}},
                                              (exact + kPageBytes - 1) / kPageBytes * kPageBytes);
    files[i].size = files[i].header.size() + files[i].tensors.back().end;
  }
  return files;
}

/// Bytes [begin, end) of the file.
void fill_piece(const SynthFile& file, uint64_t begin, uint64_t end, std::byte* out) {
  const uint64_t header = file.header.size();
  if (begin < header) std::memcpy(out, file.header.data() + begin, std::min(end, header) - begin);
  for (size_t i = 0; i < file.tensors.size(); ++i) {
    const SafetensorsTensor& tensor = file.tensors[i];
    const uint64_t from = std::max(begin, header + tensor.begin), to = std::min(end, header + tensor.end);
    if (from >= to) continue;
    const uint64_t first = (from - header - tensor.begin) / 2, n = (to - from) / 2;
    fill_synth(tensor.name, tensor.dtype, file.streams[i], first, n, out + (from - begin));
  }
}

std::string index_of(const std::vector<SynthFile>& files) {
  nlohmann::json weight_map = nlohmann::json::object();
  uint64_t total = 0;
  for (const SynthFile& file : files) {
    total += file.tensors.back().end;
    for (const SafetensorsTensor& tensor : file.tensors) weight_map[tensor.name] = file.name;
  }
  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = total;
  index["weight_map"] = weight_map;
  return index.dump(2) + "\n";
}

void require_room(const fs::path& out, uint64_t needed) {
  const uint64_t available = free_space(out);
  if (needed <= available) return;
  throw Error(ErrorKind::io,
              str("'", out.string(), "': ", human_bytes(static_cast<double>(needed)), " are needed (", needed,
                  " bytes), ", human_bytes(static_cast<double>(available)), " are available (", available, " bytes)"));
}

/// Nothing is written over.
void require_no_model(const fs::path& out, const std::vector<SynthFile>& files) {
  std::vector<std::string> names{"config.json", kIndexName};
  for (const SynthFile& file : files) names.push_back(file.name);
  std::error_code ignored;
  for (const std::string& name : names) {
    if (fs::exists(fs::symlink_status(out / name, ignored)))
      throw Error(ErrorKind::bad_input, str("'", (out / name).native(), "' is there already, and is not written over"));
  }
}

void write_files(const fs::path& out, const std::vector<SynthFile>& files, uint64_t total,
                 const SynthOptions& options) {
  const StepHook no_hook;
  std::atomic<uint64_t> done{0};
  // More threads than cores: while one waits for the disk another makes the next piece.
  const int n_threads = 2 * (options.n_threads > 0 ? options.n_threads : usable_cores());
  for (const SynthFile& plan : files) {
    OutputFile file(out / plan.name, plan.size, no_hook);
    for_each_file((plan.size + kPieceBytes - 1) / kPieceBytes, n_threads,
                  [&](size_t i, std::span<std::byte> buffer) {
                    if (options.stop.stop_requested()) throw Interrupted();
                    const uint64_t begin = i * kPieceBytes, end = std::min(begin + kPieceBytes, plan.size);
                    fill_piece(plan, begin, end, buffer.data());
                    file.write(begin, buffer.first(end - begin));
                    done += end - begin;
                  },
                  [&] {
                    if (options.progress) options.progress({"writing", done.load(), total});
                  });
    file.finish();
  }
}

}  // namespace

uint64_t synth(const fs::path& out, const SynthOptions& options) {
  if (options.dtype != DType::bf16) {
    throw Error(ErrorKind::unsupported, str("a directory of ", to_string(options.dtype),
                                            " weights is not made: it would need scales; name a tp (rank files)"));
  }
  const std::string config_json = synth_config(options);
  const ModelConfig config = parse_hf_config(config_json);
  const std::vector<SynthFile> files = plan_files(config, options.part_bytes, options.seed);
  require_no_model(out, files);
  uint64_t total = 0;
  for (const SynthFile& file : files) total += file.size;
  require_room(out, total + (uint64_t{1} << 20));
  std::error_code error;
  fs::create_directories(out, error);
  if (error) throw_errno(error.value(), "make", out.native());

  try {
    write_files(out, files, total, options);
    if (files.size() > 1) write_durably(out / kIndexName, std::string_view(index_of(files)));
    write_durably(out / "config.json", std::string_view(config_json));  // last: without it there is no model
  } catch (...) {  // random weights are no loss, and in the way of the next attempt
    for (const SynthFile& file : files) {
      fs::remove(out / file.name, error);
      fs::remove(out / (file.name + ".partial"), error);
    }
    fs::remove(out / kIndexName, error);
    throw;
  }
  return total;
}

}  // namespace firstlight
