// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/prefix.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/io/reader_choice.h"
#include "firstlight/kv/prefix_file.h"
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

std::unique_ptr<Reader> prefix_reader(Context& context, const Session& session, const SessionOptions& options,
                                      const std::shared_ptr<const File>& file) {
  ReaderChoice choice{ReaderKind::pread, "--reader pread"};
  if (options.reader == "io_uring") {
    choice = {ReaderKind::io_uring, "--reader io_uring"};
  } else if (options.reader != "pread") {
    ReaderChooser chooser;
    chooser.n_threads = session.n_threads();
    chooser.stop = context.stop;
    choice = chooser.choose({&file, 1});
  }
  return make_reader(choice, session.n_threads());
}

/// Tokens restored.
int64_t restore_prefix(Context& context, Session& session, const SessionOptions& session_options, const fs::path& path,
                       std::span<const int> prompt, PageTable& pages, PrefixUse& use) {
  const Timeline::Scope scope(&context.timeline, "restore prefix");
  const PrefixFile file(path);
  const PrefixInfo& info = file.info();
  const PrefixInfo expected = info_of(session, {});
  require_same_cache(info, expected, path.native());
  require_begins_with(prompt, info, path.native());
  const auto n = static_cast<int64_t>(info.tokens.size());
  if (!pages.try_reserve(n)) {
    throw Error(ErrorKind::out_of_memory,
                str("'", path.native(), "': a prefix of ", n, " tokens, the KV cache holds ", session.kv_use().tokens));
  }
  pages.hold_exact_before(n);
  const auto reader = prefix_reader(context, session, session_options, file.file());
  const double start = seconds_since_exec();
  const uint64_t bytes = file.read(*reader, session.runner().rank_pages(), pages, context.stop);
  use.restored = {path.native(), n, bytes, seconds_since_exec() - start};
  use.reader = reader->name();
  use.why = reader->why();
  if (info.computed_by != expected.computed_by) use.computed_by = info.computed_by;
  return n;
}

double rate_of(const PrefixUse::Transfer& done) {
  return done.seconds > 0 ? static_cast<double>(done.bytes) / done.seconds / 1e9 : 0;
}

std::string transfer_text(std::string_view verb, const PrefixUse::Transfer& done) {
  std::array<char, 32> rate{};
  std::snprintf(rate.data(), rate.size(), "%.2f GB/s", rate_of(done));
  return str("prefix: ", done.tokens, " tokens ", verb, " '", done.file, "', ",
             human_bytes(static_cast<double>(done.bytes)), " in ", human_seconds(done.seconds), ": ", rate.data());
}

nlohmann::ordered_json transfer_json(const PrefixUse::Transfer& done) {
  if (done.file.empty()) return nullptr;
  return {{"file", done.file},
          {"tokens", done.tokens},
          {"bytes", done.bytes},
          {"seconds", done.seconds},
          {"gb_per_s", rate_of(done)}};
}

}  // namespace

void PrefixOptions::add_to(CLI::App& command) {
  command.add_option("--save-prefix", save,
                     "Write the keys and values of the prompt's whole pages (64 tokens) to a file");
  command.add_option(
      "--restore-prefix", restore,
      "Read keys and values from a file that --save-prefix wrote; the prompt must begin with its tokens");
}

Prefix prepare_prefix(Context& context, Session& session, const SessionOptions& session_options,
                      const PrefixOptions& options, std::span<const int> prompt, PrefixUse& use) {
  if (options.save.empty() && options.restore.empty()) return {};
  const auto n_prompt = static_cast<int64_t>(prompt.size());
  const int64_t n_save = options.save.empty() ? 0 : n_prompt / kPageTokens * kPageTokens;
  if (!options.save.empty() && n_save == 0) {
    throw Error(ErrorKind::bad_input, str("--save-prefix: a prompt of ", n_prompt, " tokens has no whole page of ",
                                          kPageTokens, ": there is nothing to save"));
  }
  if (n_prompt >= session.max_context()) return {};  // the engine refuses it, and says why
  Prefix prefix{std::make_unique<PageTable>(session.runner().pool(), session.runner().exact_pool()), 0};
  if (!options.restore.empty())
    prefix.n_tokens = restore_prefix(context, session, session_options, options.restore, prompt, *prefix.pages, use);
  if (n_save > prefix.n_tokens) {
    const Timeline::Scope scope(&context.timeline, "compute prefix");
    extend_prefix(session.runner(), prefix, prompt, n_save, context.stop);
  }
  if (n_save > 0) {
    const Timeline::Scope scope(&context.timeline, "save prefix");
    session.wait();  // what is saved was computed from checked weights alone
    const double start = seconds_since_exec();
    const PrefixInfo info = info_of(session, prompt.first(static_cast<size_t>(n_save)));
    const uint64_t bytes = write_prefix(options.save, info, session.runner().rank_pages(), *prefix.pages, context.stop);
    use.saved = {options.save, n_save, bytes, seconds_since_exec() - start};
  }
  use.tokens_taken = reusable_tokens(n_prompt, prefix.n_tokens);
  return prefix;
}

nlohmann::ordered_json to_json(const PrefixUse& use) {
  return {{"restored", transfer_json(use.restored)},
          {"saved", transfer_json(use.saved)},
          {"reader", use.reader},
          {"why", use.why},
          {"computed_by", use.computed_by},
          {"tokens_taken", use.tokens_taken}};
}

std::string describe(const PrefixUse& use) {
  std::string text;
  if (!use.restored.file.empty()) {
    text = str(transfer_text("restored from", use.restored), " by ", use.reader, " (", use.why,
               "), every byte verified; ", use.tokens_taken, " of them taken");
    if (!use.computed_by.empty())
      text +=
          str("\n  it was computed by '", use.computed_by, "': answers may differ from this machine's in last bits");
  }
  if (!use.saved.file.empty()) text += str(text.empty() ? "" : "\n", transfer_text("saved to", use.saved));
  return text;
}

}  // namespace firstlight::cli
