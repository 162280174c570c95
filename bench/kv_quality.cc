// SPDX-License-Identifier: Apache-2.0
// What a KV cache loses: each kind's, or each variant's (kv_variants.h), next-token distributions against those of an
// f32 cache, over the same tokens and weights, in windows. Prints a table of Kullback-Leibler divergence (KLD),
// agreement and perplexity, and writes it as JSON (tools/plot_kv.py); or, for prompts that hide a pass key, how many
// are found.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "bench/kv_variants.h"
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/manifest.h"
#include "firstlight/model/runner.h"

namespace firstlight {
namespace {

constexpr int kChunk = 128;

struct Options {
  std::string out;
  std::vector<std::string> files, columns;
  std::string passkeys, calibration, json;
  int64_t window = 2048, skip = 256;
  int threads = 0;  ///< 0: usable cores
};

/// What is measured: a kind of the product, or a variant.
struct Column {
  std::string name;
  double bytes = 0;       ///< of a key and a value of one head
  double distortion = 0;  ///< of a variant, mean of keys and values
  std::unique_ptr<Runner> runner;
};

/// A kind's name with this behind it: centred by the calibration given.
constexpr std::string_view kCentred = "+centred";

Column make_column(std::string name, const Options& given, Load& load) {
  Column column;
  column.name = name;
  RunnerOptions options;
  options.max_batch_tokens = kChunk;
  options.n_threads = given.threads;
  options.n_pages = given.window / kPageTokens + 1;
  if (name.ends_with(kCentred)) {
    if (given.calibration.empty()) throw Error(ErrorKind::bad_input, "--kv " + name + " wants a --calibration");
    name.resize(name.size() - kCentred.size());
    options.means = std::make_shared<KvMeans>(
        read_kv_calibration(given.calibration, load.config(), read_manifest(given.out).source_fingerprint).means);
  }
  const int d = load.config().head_dim;
  if (const KvVariant* variant = find_kv_variant(name)) {
    const VectorCodec key(variant->key, d), value(variant->value, d);
    column.bytes = key.bytes() + value.bytes();
    column.distortion = (key.distortion() + value.distortion()) / 2;
    options.kv = KvKind::f32;
    options.make_ops = [=, n = options.n_pages](ThreadPool& pool) { return make_variant_ops(pool, *variant, n); };
  } else if (const auto kind = kv_kind_from(name)) {
    column.bytes = static_cast<double>(kv_page_bytes(*kind, 1, d)) / kPageTokens;
    options.kv = *kind;
    options.n_exact_pages = is_compressed(*kind) ? exact_pages_for(1, kChunk, options.n_pages) : 0;
  } else {
    throw Error(ErrorKind::bad_input, "--kv " + name + " is neither a kind of KV cache nor a variant");
  }
  column.runner = make_runner(load.config(), load.weights(), options);
  return column;
}

std::vector<Column> make_columns(const Options& options, Load& load) {
  std::vector<Column> columns;
  for (const std::string& name : options.columns) columns.push_back(make_column(name, options, load));
  return columns;
}

/// Parts of a window that the divergence is told of.
constexpr size_t kParts = 16;

/// Mean of some values.
struct Mean {
  double sum = 0;
  int64_t n = 0;
  void add(const Mean& other) { sum += other.sum, n += other.n; }
  double value() const { return n > 0 ? sum / static_cast<double>(n) : 0; }
};

/// One column's losses.
struct Losses {
  std::vector<double> kld;                          ///< a value a scored position
  std::vector<std::array<Mean, kParts>> of_window;  ///< the same, by part of the window
  int64_t same_top = 0;
  double nll = 0;

  double n() const { return static_cast<double>(kld.size()); }
  double perplexity_change(const Losses& exact) const { return std::exp((nll - exact.nll) / n()) - 1; }
  double same_top_share() const { return static_cast<double>(same_top) / n(); }
  double mean() const { return std::accumulate(kld.begin(), kld.end(), 0.0) / n(); }
  double quarter(size_t which) const {
    Mean all;
    for (const auto& parts : of_window) {
      for (size_t i = which * kParts / 4; i < (which + 1) * kParts / 4; ++i) all.add(parts[i]);
    }
    return all.value();
  }
  std::vector<double> quantiles(const std::vector<double>& of) const {
    std::vector<double> sorted = kld, out;
    std::sort(sorted.begin(), sorted.end());
    for (const double q : of) out.push_back(sorted[static_cast<size_t>(q * (n() - 1))]);
    return out;
  }
};

struct Distribution {
  std::vector<double> log_p, p;
  size_t top = 0;
  void set(std::span<const float> logits) {
    top = static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    p.resize(logits.size());
    log_p.resize(logits.size());
    double sum = 0;
    for (size_t i = 0; i < logits.size(); ++i) sum += p[i] = std::exp(static_cast<double>(logits[i] - logits[top]));
    const double norm = static_cast<double>(logits[top]) + std::log(sum);
    for (size_t i = 0; i < logits.size(); ++i) {
      log_p[i] = static_cast<double>(logits[i]) - norm;
      p[i] /= sum;
    }
  }
};

double divergence(const Distribution& p, const Distribution& q) {
  double sum = 0;
  for (size_t i = 0; i < p.p.size(); ++i) sum += p.p[i] * (p.log_p[i] - q.log_p[i]);
  return sum;
}

class Quality {
 public:
  Quality(const Options& options, Load& load)
      : options_(options), load_(load), columns_(make_columns(options, load)), losses_(columns_.size()) {}

  void window(std::span<const int> ids) {
    std::vector<PageTable> tables;
    for (const Column& column : columns_) {
      tables.emplace_back(column.runner->pool(), column.runner->exact_pool());
      if (!tables.back().try_reserve(static_cast<int64_t>(ids.size()))) std::abort();
    }
    for (Losses& losses : losses_) losses.of_window.emplace_back();
    for (size_t begin = 0; begin < ids.size(); begin += kChunk) {
      const auto tokens = ids.subspan(begin, std::min<size_t>(kChunk, ids.size() - begin));
      const size_t end = begin + tokens.size(), first = std::max(begin, static_cast<size_t>(options_.skip));
      const size_t n_scored = end > first ? end - first : 0;
      std::vector<Distribution> exact(n_scored);
      for (size_t k = 0; k < columns_.size(); ++k) {
        const SequenceChunk chunk{tokens, static_cast<int64_t>(begin), &tables[k], static_cast<int>(n_scored)};
        columns_[k].runner->forward({&chunk, 1}, logits_);
        tables[k].release_exact(static_cast<int64_t>(end));
        for (size_t i = 0; i < n_scored && first + i + 1 < ids.size(); ++i)
          score(k, exact[i], i, static_cast<int64_t>(first + i), static_cast<size_t>(ids[first + i + 1]));
      }
    }
  }

  void print() const {
    std::printf("%zu positions in windows of %ld, from position %ld on; K+V bytes a head of %d\n",
                losses_[0].kld.size(), static_cast<long>(options_.window), static_cast<long>(options_.skip),
                load_.config().head_dim);
    std::printf(
        "| kv | bytes | MSE | PPL %% | mean KLD | p99 | p99.9 | same top-1 %% | KLD by quarter of the window |\n");
    std::printf("|---|---|---|---|---|---|---|---|---|\n");
    for (size_t k = 0; k < losses_.size(); ++k) print(columns_[k], losses_[k]);
    std::fflush(stdout);
    if (!options_.json.empty() && !(std::ofstream(options_.json) << to_json().dump(1) << "\n" << std::flush))
      throw Error(ErrorKind::io, str("write '", options_.json, "'"));
  }

  nlohmann::ordered_json to_json() const {
    nlohmann::ordered_json kinds;
    for (size_t k = 0; k < losses_.size(); ++k) {
      const Losses& losses = losses_[k];
      const std::vector<double> tail = losses.quantiles({.99, .999});
      nlohmann::ordered_json windows;
      for (const auto& parts : losses.of_window) {
        windows.emplace_back();
        for (const Mean& part : parts) windows.back().push_back(part.value());
      }
      kinds.push_back({{"kv", columns_[k].name},
                       {"bytes", columns_[k].bytes},
                       {"mse", columns_[k].distortion},
                       {"perplexity_change", losses.perplexity_change(losses_[0])},
                       {"mean_kld", losses.mean()},
                       {"p99_kld", tail[0]},
                       {"p999_kld", tail[1]},
                       {"same_top1", losses.same_top_share()},
                       {"kld_by_window_and_position", windows}});
    }
    return {{"positions", losses_[0].kld.size()},
            {"window", options_.window},
            {"skip", options_.skip},
            {"head_dim", load_.config().head_dim},
            {"kinds", kinds}};
  }

 private:
  void score(size_t k, Distribution& exact, size_t row, int64_t position, size_t next) {
    const auto vocab = static_cast<size_t>(load_.config().vocab_size);
    const std::span<const float> logits(logits_.data() + row * vocab, vocab);
    if (k == 0) exact.set(logits);
    found_.set(logits);
    Losses& losses = losses_[k];
    losses.kld.push_back(divergence(exact, found_));
    const auto part = static_cast<size_t>((position - options_.skip) * static_cast<int64_t>(kParts) /
                                          (options_.window - options_.skip));
    losses.of_window.back()[part].add({losses.kld.back(), 1});
    losses.same_top += exact.top == found_.top ? 1 : 0;
    losses.nll -= found_.log_p[next];
  }

  void print(const Column& column, const Losses& losses) const {
    const std::vector<double> tail = losses.quantiles({.99, .999});
    std::printf("| %s | %.0f | %.5f | %+.2f | %.7f | %.5f | %.5f | %.2f |", column.name.c_str(), column.bytes,
                column.distortion, 100 * losses.perplexity_change(losses_[0]), losses.mean(), tail[0], tail[1],
                100 * losses.same_top_share());
    for (size_t i = 0; i < 4; ++i) std::printf(" %.6f", losses.quarter(i));
    std::printf(" |\n");
  }

  const Options options_;
  Load& load_;
  std::vector<Column> columns_;
  std::vector<Losses> losses_;
  std::vector<float> logits_;
  Distribution found_;
};

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
      const Column column = make_column(name, options, load);
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
    for (size_t begin = 0, n = ids.size() % kChunk; begin < ids.size(); begin += n, n = kChunk) {
      if (n == 0) n = kChunk;  // the last chunk is a whole one, and has the answer
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
      found = found && distribution.top == expected;
      cells.nll -= distribution.log_p[expected];
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
    firstlight::Quality quality(options, *load);
    for (const std::string& file : options.files) {
      const auto ids = nlohmann::json::parse(std::ifstream(file)).get<std::vector<int>>();
      const auto window = static_cast<size_t>(options.window);
      for (size_t at = 0; at + window <= ids.size(); at += window) quality.window(std::span(ids).subspan(at, window));
      std::fprintf(stderr, "%s: done\n", file.c_str());
      quality.print();  // of all files up to here: a long run that is ended has said something
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kv_quality: %s\n", error.what());
    return 1;
  }
  return 0;
}
