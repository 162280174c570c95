// SPDX-License-Identifier: Apache-2.0
// The offline conversion: a source is cut into one safetensors file set a rank (docs/rank-checkpoint.md), and its
// checks.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "firstlight/ckpt/manifest.h"
#include "firstlight/ckpt/source.h"

namespace firstlight {

enum class DTypeChoice { source, bf16, f32 };

struct Progress {
  std::string what;  ///< "writing", "verifying"
  uint64_t done_bytes = 0, total_bytes = 0;
};

struct ShardOptions {
  std::vector<int> tps;                ///< wanted; those already stored are kept
  std::optional<DTypeChoice> dtype;    ///< default: source for safetensors, bf16 for a GGUF with quantised blocks
  uint64_t memory_bytes = 2ull << 30;  ///< bound of all buffers together
  uint64_t part_bytes = 4ull << 30;    ///< wanted size of a part, 2–8 GiB (tests: smaller)
  bool force = false;                  ///< start anew: what shard wrote in `out` before, any model, is removed first
  bool read_back = false;  ///< each written part before the checkpoint is READY; on a network's file system always
  int n_threads = 0;
  std::map<std::string, std::string> derived;  ///< files to stand in OUT beside the source's, worked out from them
  std::stop_token stop;
  std::function<void(const Progress&)> progress;
  std::function<void(const std::string&)>
      note;  ///< one line a decision: "f16 becomes bf16: …", "resumed: 3 of 5 parts are there"
};

struct ShardReport {
  uint64_t bytes_written = 0, bytes_kept = 0;  ///< kept: whole parts that an earlier, interrupted run left
  double seconds = 0;
  std::vector<int> tps;
  std::string dtype;
};

/// Several tps in one pass over the source. Interruptible at any moment (also by kill -9): the same call again
/// completes it, and the files are the same to the byte.
ShardReport shard(const Source& source, const fs::path& out, const ShardOptions& options);

/// What loading `out` at `tp` would do. Reads no tensor data.
struct PlanRank {
  int rank = 0;
  uint64_t bytes = 0, arena_bytes = 0, aligned_bytes = 0;  ///< aligned: in page multiples
  uint64_t n_reads = 0, n_leaves = 0, n_parts = 0;
};
struct LoadPlan {
  int tp = 1;
  std::vector<PlanRank> ranks;
};
LoadPlan plan_load(const fs::path& out, int tp);
/// What it would do if `shard` had cut the source so, with its default types. Throws as require_tp().
LoadPlan plan_source(const Source& source, int tp, uint64_t part_bytes);

struct VerifyReport {
  uint64_t bytes = 0, files = 0, leaves = 0;
  double seconds = 0;
  std::vector<std::string> problems;  ///< each names file, range and tensor; empty: all is well
  bool unreadable = false;            ///< some are the operating system's: those bytes were not compared
  bool damaged = false;               ///< some are of files that are missing or wrong: they must be made anew
  bool unfinished = false;            ///< some are files of a conversion that runs or was interrupted
  bool foreign = false;               ///< some are files that shard did not write: it never removes them
  bool being_written = false;         ///< a conversion runs there: what looks unfinished or missing is its work
};
/// Every byte of every file under `out` against the manifest; also files that should not be there, and leaves against
/// parts. Goes on after the first problem.
VerifyReport verify(const fs::path& out, int n_threads, std::stop_token stop,
                    const std::function<void(const Progress&)>& progress);

/// Random weights in a model's shapes, as an HF directory of bf16 safetensors with config.json; no tokenizer.
/// Deterministic for a seed.
struct SynthOptions {
  std::string like;         ///< a known name (synth_names()) …
  std::string config_json;  ///< … or a config.json's text
  int n_layers = 0;         ///< in place of the model's; 0: its own
  /// bf16, or f8_e4m3: the matrices of the layers at one byte a value, for benches of loading (synth_source() alone).
  DType dtype = DType::bf16;
  uint64_t seed = 0;
  uint64_t part_bytes = 5ull << 30;
  int n_threads = 0;
  std::stop_token stop;
  std::function<void(const Progress&)> progress;
};
std::vector<std::string> synth_names();
uint64_t synth(const fs::path& out, const SynthOptions& options);  ///< bytes written

}  // namespace firstlight
