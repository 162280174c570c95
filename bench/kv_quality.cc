// SPDX-License-Identifier: Apache-2.0
// What variants that the product does not have (kv_variants.h) lose beside its own kinds, of which `firstlight bench
// kv` tells: divergence from an f32 cache, agreement and perplexity, as a table and as JSON (tools/plot_kv.py); or, for
// prompts that hide a pass key, how many are found.
#include "firstlight/model/kv_quality.h"

#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/kv_variants.h"
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/manifest.h"

namespace firstlight {
namespace {

struct Options {
  std::string out;
  std::vector<std::string> files, columns;
  std::string passkeys, calibration, json;
  int64_t window = 2048, skip = 256;
  int threads = 0;  ///< 0: usable cores
};

/// A kind's name with this behind it: centred by the calibration given.
constexpr std::string_view kCentred = "+centred";

KvColumn make_column(std::string name, const Options& given, Load& load) {
  std::shared_ptr<const KvMeans> means;
  if (name.ends_with(kCentred)) {
    if (given.calibration.empty()) throw Error(ErrorKind::bad_input, "--kv " + name + " wants a --calibration");
    name.resize(name.size() - kCentred.size());
    means = std::make_shared<KvMeans>(
        read_kv_calibration(given.calibration, load.config(), read_manifest(given.out).source_fingerprint).means);
  }
  if (const auto kind = kv_kind_from(name))
    return make_kv_column(load.config(), load.weights(), *kind, given.window, std::move(means), given.threads);
  const KvVariant* variant = find_kv_variant(name);
  if (!variant) throw Error(ErrorKind::bad_input, "--kv " + name + " is neither a kind of KV cache nor a variant");
  const int d = load.config().head_dim;
  const VectorCodec key(variant->key, d), value(variant->value, d);
  RunnerOptions options;
  options.kv = KvKind::f32;
  options.max_batch_tokens = kKvQualityChunk;
  options.n_threads = given.threads;
  options.n_pages = given.window / kPageTokens + 1;
  options.make_ops = [=, n = options.n_pages](ThreadPool& pool) { return make_variant_ops(pool, *variant, n); };
  return {name, key.bytes() + value.bytes(), (key.distortion() + value.distortion()) / 2,
          make_runner(load.config(), load.weights(), options)};
}

std::vector<KvColumn> make_columns(const Options& options, Load& load) {
  std::vector<KvColumn> columns;
  for (const std::string& name : options.columns) columns.push_back(make_column(name, options, load));
  return columns;
}

void print(const KvQuality& quality, const Options& options) {
  const nlohmann::ordered_json report = quality.to_json();
  std::printf("%zu positions in windows of %ld, from position %ld on; K+V bytes a head of %d\n",
              report["positions"].get<size_t>(), static_cast<long>(options.window), static_cast<long>(options.skip),
              report["head_dim"].get<int>());
  std::printf(
      "| kv | bytes | MSE | PPL %% | mean KLD | p99 | p99.9 | same top-1 %% | KLD by quarter of the window |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|\n");
  for (const auto& kind : report["kinds"]) {
    std::printf("| %s | %.0f | %.5f | %+.2f | %.7f | %.5f | %.5f | %.2f |", kind["kv"].get<std::string>().c_str(),
                kind["bytes"].get<double>(), kind["mse"].get<double>(), 100 * kind["perplexity_change"].get<double>(),
                kind["mean_kld"].get<double>(), kind["p99_kld"].get<double>(), kind["p999_kld"].get<double>(),
                100 * kind["same_top1"].get<double>());
    for (const auto& quarter : kind["quarter_kld"]) std::printf(" %.6f", quarter.get<double>());
    std::printf(" |\n");
  }
  std::fflush(stdout);
  if (!options.json.empty() && !(std::ofstream(options.json) << report.dump(1) << "\n" << std::flush))
    throw Error(ErrorKind::io, str("write '", options.json, "'"));
}

/// Prompts with a number hidden in filler text, each followed by its answer.
class Passkeys {
 public:
  explicit Passkeys(const std::string& file) {
    for (const auto& each : nlohmann::json::parse(std::ifstream(file))) {
      prompts_.push_back({each.at("length"), each.at("depth"), each.at("n_answer"), each.at("ids")});
      if (prompts_.back().n_answer < 1 || prompts_.back().n_answer >= std::ssize(prompts_.back().ids))
        throw Error(ErrorKind::bad_input, file + ": a prompt without an answer, or an answer without a prompt");
    }
  }

  /// A line of a table a length: prompts whose answer greedy sampling gives, of all; and by depth.
  void print(const Options& options, Load& load) const {
    std::printf("| kv | length | found | mean NLL of the answer | found by depth |\n|---|---|---|---|---|\n");
    for (const std::string& name : options.columns) {
      const KvColumn column = make_column(name, options, load);
      std::map<int, Cells> lengths;
      for (const Prompt& prompt : prompts_) ask(*column.runner, prompt, lengths[prompt.length]);
      for (const auto& [length, cells] : lengths) {
        int found = 0, all = 0;
        for (const auto& [depth, cell] : cells.of_depth) found += cell.found, all += cell.all;
        std::printf("| %s | %d | %d of %d | %.4f |", name.c_str(), length, found, all, cells.nll / all);
        for (const auto& [depth, cell] : cells.of_depth) std::printf(" %d %%: %d/%d", depth, cell.found, cell.all);
        std::printf(" |\n");
      }
      std::fflush(stdout);
    }
  }

 private:
  struct Prompt {
    int length = 0, depth = 0;  ///< tokens, about; per cent of them before the key
    int n_answer = 0;           ///< the last ids
    std::vector<int> ids;
  };
  struct Cell {
    int found = 0, all = 0;
  };
  struct Cells {
    std::map<int, Cell> of_depth;
    double nll = 0;
  };

  /// The answer is given (teacher forcing): greedy sampling gives it if each of its tokens is the likeliest.
  static void ask(Runner& runner, const Prompt& prompt, Cells& cells) {
    const std::span<const int> ids(prompt.ids.data(), prompt.ids.size() - 1);
    const auto n_answer = static_cast<size_t>(prompt.n_answer);
    PageTable pages(runner.pool(), runner.exact_pool());
    if (!pages.try_reserve(static_cast<int64_t>(ids.size())))
      throw Error(ErrorKind::bad_input, "a prompt is longer than --window");
    std::vector<float> logits;
    for (size_t begin = 0, n = ids.size() % kKvQualityChunk; begin < ids.size(); begin += n, n = kKvQualityChunk) {
      if (n == 0) n = kKvQualityChunk;  // the last chunk is a whole one, and has the answer
      const bool last = begin + n == ids.size();
      const SequenceChunk chunk{ids.subspan(begin, n), static_cast<int64_t>(begin), &pages, last ? prompt.n_answer : 0};
      runner.forward({&chunk, 1}, logits);
      pages.release_exact(static_cast<int64_t>(begin + n));
    }
    const size_t vocab = logits.size() / n_answer;
    bool found = true;
    Distribution distribution;
    for (size_t i = 0; i < n_answer; ++i) {
      distribution.set({logits.data() + i * vocab, vocab});
      const auto expected = static_cast<size_t>(prompt.ids[prompt.ids.size() - n_answer + i]);
      found = found && distribution.top() == expected;
      cells.nll -= distribution.log_p(expected);
    }
    Cell& cell = cells.of_depth[prompt.depth];
    cell.found += found ? 1 : 0;
    cell.all += 1;
  }

  std::vector<Prompt> prompts_;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&] {
      return i + 1 < argc ? std::string(argv[++i]) : throw Error(ErrorKind::bad_input, word + " wants a value");
    };
    if (word == "--window") {
      options.window = std::stoll(value());
    } else if (word == "--skip") {
      options.skip = std::stoll(value());
    } else if (word == "--threads") {
      options.threads = std::stoi(value());
    } else if (word == "--kv") {
      const std::string name = value();
      if (name == "variants") {
        for (const KvVariant& variant : kv_variants()) options.columns.emplace_back(variant.name);
      } else {
        options.columns.push_back(name);
      }
    } else if (word == "--passkeys") {
      options.passkeys = value();
    } else if (word == "--calibration") {
      options.calibration = value();
    } else if (word == "--json") {
      options.json = value();
    } else if (options.out.empty()) {
      options.out = word;
    } else {
      options.files.push_back(word);
    }
  }
  if (options.files.empty() == options.passkeys.empty() || options.window <= options.skip) {
    throw Error(
        ErrorKind::bad_input,
        "usage: kv_quality OUT IDS.json... [--window N] [--skip N] [--threads N] [--kv "
        "KIND[+centred]|VARIANT|variants]... "
        "[--calibration FILE] [--json FILE]; each file a JSON list of token ids, cut into windows; or kv_quality OUT "
        "--passkeys FILE, a JSON list of {length, depth, n_answer, ids}");
  }
  if (options.columns.empty()) {
    for (const KvKind kind : kKvKinds) options.columns.emplace_back(to_string(kind));
  }
  if (options.columns[0] != "f32") options.columns.insert(options.columns.begin(), "f32");
  return options;
}

}  // namespace
}  // namespace firstlight

int main(int argc, char** argv) {
  try {
    const firstlight::Options options = firstlight::parse(argc, argv);
    const auto load = firstlight::load_rank_checkpoint(options.out, {});
    load->wait();
    if (!options.passkeys.empty()) {
      firstlight::Passkeys(options.passkeys).print(options, *load);
      return 0;
    }
    firstlight::KvQuality quality(make_columns(options, *load), {options.window, options.skip}, options.threads);
    for (const std::string& file : options.files) {
      const auto ids = nlohmann::json::parse(std::ifstream(file)).get<std::vector<int>>();
      const auto window = static_cast<size_t>(options.window);
      for (size_t at = 0; at + window <= ids.size(); at += window) quality.window(std::span(ids).subspan(at, window));
      std::fprintf(stderr, "%s: done\n", file.c_str());
      print(quality, options);  // of all files up to here: a long run that is ended has said something
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kv_quality: %s\n", error.what());
    return 1;
  }
  return 0;
}
