// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/prefix.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/ckpt/load_lane.h"
#include "firstlight/io/pread_reader.h"
#include "firstlight/io/reader_choice.h"
#include "firstlight/quant/turboquant.h"

namespace firstlight::cli {

namespace {

/// The same for the same source in the same element type, however it is cut into ranks.
std::string identity_of(Session& session) {
  const Manifest* manifest = session.manifest();
  const std::string source = manifest != nullptr ? str(manifest->source_kind, " ", manifest->source_fingerprint)
                                                 : str(session.source()->kind(), " ", session.source()->fingerprint());
  const auto& tensors = session.load().weights()[0].tensors;
  const std::string text = str(source, " ", to_string(tensors.find("model.embed_tokens.weight")->second.dtype));
  return "xxh3:" + xxh3_128_hex(std::as_bytes(std::span(text)));
}

/// Without the number of threads, which changes no bit.
std::string arithmetic_of(Session& session) {
  const std::string_view name = session.runner().ops_name();
  std::string text(name.substr(0, std::min(name.find(','), kPrefixNameBytes)));
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return text;
}

PrefixInfo info_of(Session& session, std::span<const int> tokens) {
  const ModelConfig& config = session.config();
  PrefixInfo info;
  info.model = identity_of(session);
  info.computed_by = arithmetic_of(session);
  info.kind = session.kv_use().kind;
  info.seed = is_compressed(info.kind) ? turboquant::kSeed : 0;
  const std::string centring = session.kv_use().centring;
  info.centring = centring.empty() ? 0 : std::stoull(centring, nullptr, 16);
  info.tp = session.tp();
  info.n_layers = config.n_layers;
  info.n_kv_heads = config.n_kv_heads;
  info.head_dim = config.head_dim;
  info.tokens.assign(tokens.begin(), tokens.end());
  return info;
}

/// How this file alone is best read.
ReaderChoice choose_for(Context& context, const SessionOptions& options, const std::shared_ptr<const File>& file) {
  if (options.reader == "io_uring") return {ReaderKind::io_uring, "--reader io_uring"};
  if (options.reader != "auto") {
    const std::string why =
        options.reader == "cufile" ? "libcufile reads into the weights' memory alone" : "--reader " + options.reader;
    return choose_pread({&file, 1}, why, options.reader == "buffered");
  }
  ReaderChooser chooser;
  chooser.n_threads = options.threads > 0 ? options.threads : usable_cores();
  chooser.stop = context.stop;
  return chooser.choose({&file, 1});
}

/// Whether the weights' reader is as good for `file`, for which `choice` was made. One by libcufile knows memory of
/// cudaMalloc, and a cache is none (Reach::own); one by pread may have the few threads that do for the page cache.
bool reads_as_weights(const std::vector<ReadLane*>& lanes, const SessionOptions& options, const ReaderChoice& choice,
                      const File& file) {
  if (lanes.empty()) return false;
  const std::string_view name = lanes[0]->reader->name();
  if (name == "cufile") return false;
  constexpr uint64_t kFew = 32u << 20;  // not worth threads of their own
  const bool by_pread = choice.kind == ReaderKind::pread || choice.kind == ReaderKind::pread_direct;
  if (name == PreadReader::kDirectName) return choice.kind == ReaderKind::pread_direct;
  if (name == "pread") return by_pread && (!choice.cold || file.size() < kFew);
  return options.reader != "auto" || choice.kind == ReaderKind::io_uring;
}

struct Amount {
  uint64_t bytes = 0;
  double seconds = 0;
  double gb_per_s() const { return seconds > 0 ? static_cast<double>(bytes) / seconds / 1e9 : 0; }
};

Amount amount_of(const PrefixUse::Transfer& done) { return {done.bytes, done.end_s - done.begin_s}; }

/// If they came together.
std::optional<Amount> amount_with_weights(const PrefixUse& use, const LoadReport& load) {
  const bool together = use.behind_weights && use.restored.begin_s < load.begin_s + load.seconds;
  return together ? std::optional(Amount{use.restored.bytes + load.bytes, use.restored.end_s - load.begin_s})
                  : std::nullopt;
}

std::string amount_text(const Amount& amount) {
  std::array<char, 32> rate{};
  std::snprintf(rate.data(), rate.size(), "%.2f GB/s", amount.gb_per_s());
  return str(human_bytes(static_cast<double>(amount.bytes)), " in ", human_seconds(amount.seconds), ": ", rate.data());
}

std::string transfer_text(std::string_view verb, const PrefixUse::Transfer& done) {
  return str("prefix: ", done.tokens, " tokens ", verb, " '", done.file, "', ", amount_text(amount_of(done)));
}

nlohmann::ordered_json amount_json(const Amount& amount) {
  return {{"bytes", amount.bytes}, {"seconds", amount.seconds}, {"gb_per_s", amount.gb_per_s()}};
}

nlohmann::ordered_json transfer_json(const PrefixUse::Transfer& done) {
  if (done.file.empty()) return nullptr;
  nlohmann::ordered_json json{{"file", done.file}, {"tokens", done.tokens}};
  json.update(amount_json(amount_of(done)));
  return json;
}

}  // namespace

void PrefixOptions::add_to(CLI::App& command) {
  command.add_option("--save-prefix", save,
                     "Write the keys and values of the prompt's whole pages (64 tokens) to a file");
  command.add_option(
      "--restore-prefix", restore,
      "Read keys and values from a file that --save-prefix wrote; the prompt must begin with its tokens");
}

struct PrefixRestore::OwnLanes {
  LoadOptions options;  // outlive the lanes
  std::vector<LoadLane> lanes;
};

PrefixRestore::PrefixRestore(Context& context, const SessionOptions& options, const fs::path& path)
    : begin_(Reader::Clock::now()),
      watch_(path.native(), options.deadline_s, context.json),
      file_(path),
      choice_(choose_for(context, options, file_.file())) {}
PrefixRestore::~PrefixRestore() = default;

void PrefixRestore::begin(Session& session, const SessionOptions& options) {
  const std::string& path = file_.file()->path();
  const PrefixInfo& info = file_.info();
  require_same_cache(info, info_of(session, {}), path);
  const auto n = static_cast<int64_t>(info.tokens.size());
  pages_ = std::make_unique<PageTable>(session.runner().pool(), session.runner().exact_pool());
  if (!pages_->try_reserve(n)) return;  // finish() says so
  pages_->hold_exact_before(n);
  std::vector<ReadLane*> lanes = session.load().lanes();
  const bool as_weights = reads_as_weights(lanes, options, choice_, *file_.file());
  if (!as_weights) {
    own_lanes_ = std::make_unique<OwnLanes>();
    LoadOptions& load = own_lanes_->options;
    load.tp = session.tp();
    load.devices = session.devices();
    load.device = session.device();
    load.n_threads = options.threads;
    std::set<int> devices;
    for (const Device device : load.devices) devices.insert(device.index);
    const int n_devices = std::max(1, static_cast<int>(devices.size()));
    load.make_reader = [choice = choice_, n_devices](int n) { return make_reader(choice, n, n_devices); };
    own_lanes_->lanes = make_lanes(load);
    set_deadline(own_lanes_->lanes, begin_, options.deadline_s);
    lanes.resize(static_cast<size_t>(session.tp()));
    for (LoadLane& lane : own_lanes_->lanes) {
      for (const size_t rank : lane.ranks) lanes[rank] = &lane;
    }
  }
  reader_ = lanes[0]->reader->name();
  why_ = as_weights ? "behind the weights, by their reader" : choice_.why;
  read_ = std::make_unique<PrefixRead>(file_, lanes, session.runner().rank_pages(), *pages_);
}

Prefix PrefixRestore::finish(Context& context, Session& session, std::span<const int> prompt, PrefixUse& use) {
  const std::string& path = file_.file()->path();
  const PrefixInfo& info = file_.info();
  require_begins_with(prompt, info, path);
  const auto n = static_cast<int64_t>(info.tokens.size());
  if (!read_) {
    throw Error(ErrorKind::out_of_memory,
                str("'", path, "': a prefix of ", n, " tokens, the KV cache holds ", session.kv_use().tokens));
  }
  PrefixRead::Report done;
  try {
    done = read_->wait(context.stop);
  } catch (const Error&) {
    session.load().rethrow_failure();  // which cancels what is read behind it
    throw;
  }
  context.timeline.add("restore prefix", done.begin_s, done.end_s);
  use.restored = {path, n, done.bytes, done.begin_s, done.end_s};
  use.behind_weights = own_lanes_ == nullptr;
  use.reader = reader_;
  use.why = why_;
  if (info.computed_by != arithmetic_of(session)) use.computed_by = info.computed_by;
  read_.reset();
  own_lanes_.reset();
  watch_.end();
  use.tokens_taken = reusable_tokens(static_cast<int64_t>(prompt.size()), n);
  return {std::move(pages_), n};
}

PrefixSave::PrefixSave(Context& context, Session& session, const fs::path& path, std::span<const int> prompt)
    : context_(context), session_(session), path_(path), on_stop_(context.stop, [this] { give_up_.request_stop(); }) {
  const size_t n = prompt.size() / kPageTokens * kPageTokens;
  if (n == 0) {
    throw Error(ErrorKind::bad_input, str("--save-prefix: a prompt of ", prompt.size(), " tokens has no whole page of ",
                                          kPageTokens, ": there is nothing to save"));
  }
  require_prefix_place(path_);
  reserving_ = start_future("room for the prefix", [this, info = info_of(session, prompt.first(n))] {
    return std::make_unique<PrefixWriter>(path_, info);
  });
}

PrefixSave::~PrefixSave() { give_up_.request_stop(); }

void PrefixSave::begin() {
  session_.wait();
  writing_ = start_future("saving the prefix", [this] {
    const double start = seconds_since_exec();
    const std::unique_ptr<PrefixWriter> writer = reserving_.get();
    const uint64_t bytes = writer->write(session_.runner().rank_pages(), *prompt_.pages, give_up_.get_token());
    return PrefixUse::Transfer{path_, prompt_.n_tokens, bytes, start, seconds_since_exec()};
  });
}

PrefixUse::Transfer PrefixSave::finish() {
  PrefixUse::Transfer saved = writing_.get();
  prompt_ = {};
  context_.timeline.add("save prefix", saved.begin_s, saved.end_s);
  return saved;
}

nlohmann::ordered_json to_json(const PrefixUse& use, const LoadReport& load) {
  const auto together = amount_with_weights(use, load);
  return {{"restored", transfer_json(use.restored)},
          {"with_weights", together ? amount_json(*together) : nlohmann::ordered_json()},
          {"saved", transfer_json(use.saved)},
          {"reader", use.reader},
          {"why", use.why},
          {"computed_by", use.computed_by},
          {"tokens_taken", use.tokens_taken}};
}

std::string describe(const PrefixUse& use, const LoadReport& load) {
  std::string text;
  if (!use.restored.file.empty()) {
    text = str(transfer_text("restored from", use.restored), " by ", use.reader, " (", use.why,
               "), every byte verified; ", use.tokens_taken, " of them taken");
    if (const auto together = amount_with_weights(use, load))
      text += str("\n  weights and prefix together: ", amount_text(*together));
    if (!use.computed_by.empty())
      text +=
          str("\n  it was computed by '", use.computed_by, "': answers may differ from this machine's in last bits");
  }
  if (!use.saved.file.empty()) text += str(text.empty() ? "" : "\n", transfer_text("saved to", use.saved));
  return text;
}

}  // namespace firstlight::cli
