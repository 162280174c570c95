// SPDX-License-Identifier: Apache-2.0
// A MODEL, started: weights arriving, text side ready, a runner to compute with. What run, chat and score share.
#pragma once
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "firstlight/ckpt/load.h"
#include "firstlight/cli/context.h"
#include "firstlight/cli/load_watch.h"
#include "firstlight/cli/model_text.h"
#include "firstlight/cli/session_reader.h"
#include "firstlight/model/runner.h"

namespace CLI {
class App;
}

namespace firstlight::cli {

/// Options that every command with a started model has.
struct SessionOptions {
  std::string model;
  int tp = 0;  ///< 0: choose
  std::string device = "auto";
  std::string dtype;           ///< traditional path: f32, bf16 or "" (as stored)
  std::string kv;              ///< f32, bf16, a preset of codes (tq4, …) or "": as the weights
  std::string kv_calibration;  ///< file of means that codes are centred by, or ""
  std::string verify = "full";
  double deadline_s = 0;
  std::string kv_memory;
  std::string reader = "auto";
  std::string comm = "auto";
  int64_t max_context = 0;
  int threads = 0;
  int logit_rows = 1;  ///< no option: rows of logits that the command asks for at once, counted in the memory needed
  int64_t most_context = 0;  ///< no option: tokens that the command's sequences have at most; 0: the model's
  bool traditional = false;
  bool text_optional = false;  ///< no option: a model without tokenizer will do

  void add_to(CLI::App& command);
};

/// The KV cache of a session: what it takes and what it holds.
struct KvUse {
  KvKind kind = KvKind::bf16;
  uint64_t bytes = 0;        ///< of all pages, over all ranks
  uint64_t exact_bytes = 0;  ///< of these, bf16 pages beside codes
  int64_t tokens = 0;        ///< that fit
  int64_t bf16_tokens = 0;   ///< that the same bytes would hold in bf16
  std::string centring;      ///< of codes that are centred: hash of the means; else ""
};

class Session {
 public:
  /// Opens the model, starts the load (and the text side on its own thread), and makes the runner. Returns while bytes
  /// may still be arriving. Prints the path taken and why. `with_text` = false leaves tokenizer and template out,
  /// `with_runner` = false the runner. With context.processes this is one rank's session, and rank 0's choices are
  /// all ranks'.
  Session(Context& context, const SessionOptions& options, bool with_text = true, bool with_runner = true);
  ~Session();
  /// One that is never destroyed: the process ends with the command, and the kernel takes threads, pinned pages and
  /// gigabytes of weights back sooner than destructors do (16 GB on a GPU: 140 ms).
  template <class... Arguments>
  static Session& make(Arguments&&... arguments) {
    return *std::make_unique<Session>(std::forward<Arguments>(arguments)...).release();
  }

  const ModelConfig& config() const { return load_->config(); }
  Runner& runner() { return *runner_; }
  /// For what arrives; its end is wait().
  Load& load() { return *load_; }
  /// Blocks until the text side is ready and the small files are checked; rethrows what failed.
  ModelText& text();
  /// Blocks until all weights are there and all that the session depends on is checked; rethrows what failed. Where
  /// ranks are processes, it ends their work, too: the last call, once.
  LoadReport wait();
  /// Of a rank but the first of several processes: computes what rank 0 asks for, until its wait().
  void follow();
  /// Tokens a sequence may have, and why it is not the model's own maximum ("" if it is).
  int64_t max_context() const { return max_context_; }
  /// Tokens of a prompt that one pass takes where nothing decodes beside them: EngineOptions::prefill_alone.
  int pass_tokens() const { return runner_options_.max_batch_tokens; }
  int tp() const { return tp_; }
  /// Null unless MODEL is a rank checkpoint.
  const Manifest* manifest() const { return manifest_.get(); }
  /// Null where MODEL is read as a rank checkpoint.
  const Source* source() const { return source_.get(); }
  Device device() const { return device_; }  ///< of rank 0, or of the rank that this process is
  /// Of each rank; where ranks are processes, GPUs count in rank order from rank 0's on, whatever each process calls
  /// its own.
  const std::vector<Device>& devices() const { return devices_; }
  int n_threads() const { return n_threads_; }
  KvUse kv_use() const;
  /// Source::fingerprint() of what the weights come from.
  std::string fingerprint() const { return manifest_ ? manifest_->source_fingerprint : source_->fingerprint(); }

 private:
  void read_means(const ModelConfig& config, const std::string& path, KvKind kv);
  int pass_tokens_for(const ModelConfig& config, KvKind kv, int64_t context) const;
  void choose_context(const ModelConfig& config, uint64_t arena_bytes, const SessionOptions& options, KvKind kv);
  LoadOptions load_options(const SessionOptions& options, ReaderChoice reader, OpenCufile open_direct);
  void start_text(TextFiles files);
  void start_small_files(const fs::path& out, int tp, bool with_text);
  static void require_joinable(const SessionOptions& options, ModelKind kind);
  void choose_sums(const SessionOptions& options);
  void share(ReaderChoice& reader);
  std::vector<Device> devices_of_processes() const;
  void agree(bool with_runner);
  void require_fits_together(uint64_t all_weights, uint64_t all_reserve);
  LoadReport end_group(LoadReport report);

  Context* context_;
  std::shared_ptr<LoadWatch> watch_;  // outlives what may wait for a stuck read
  std::shared_ptr<const Manifest> manifest_;
  std::unique_ptr<Source> source_;
  std::unique_ptr<Load> load_;
  std::unique_ptr<Runner> runner_;
  std::future<ModelText> text_future_;
  std::future<void> small_files_;
  std::optional<ModelText> text_;
  RunnerOptions runner_options_;
  int64_t max_context_ = 0;
  uint64_t extra_bytes_ = 0;  // beyond the row that scratch_bytes() counts
  Device device_;
  std::vector<Device> devices_;
  int tp_ = 1;
  int n_threads_ = 1;
  bool with_runner_ = true;
};

/// The largest stored tp that has a GPU for each rank; the smallest if none does, as on the CPU (0 GPUs), where ranks
/// would share the same cores. Throws Error{damaged} for a manifest without any.
int default_tp(const Manifest& manifest, int n_gpus);

/// "load": {...} of run --json.
nlohmann::ordered_json to_json(const LoadReport& report);
/// One line for people: "loaded 269 MB in 31 ms: 8.7 GB/s by pread (…); every byte verified (…)".
std::string describe(const LoadReport& report);
nlohmann::ordered_json to_json(const KvUse& use);
/// One line for people: "KV cache: tq4, 50 MB for 8192 tokens; the same memory holds 2176 in bf16".
std::string describe(const KvUse& use);
/// The phases as text bars over one time axis, a line each.
std::string draw_timeline(const std::vector<Phase>& phases, double end_s, std::string_view since = "exec");
nlohmann::ordered_json to_json(const std::vector<Phase>& phases);

}  // namespace firstlight::cli
