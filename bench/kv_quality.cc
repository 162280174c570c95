// SPDX-License-Identifier: Apache-2.0
// What a KV cache loses: each kind's next-token distributions against those of an f32 cache, over the same tokens and
// weights, in windows. Prints a table of Kullback-Leibler divergence (KLD), agreement and perplexity.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/model/runner.h"

namespace firstlight {
namespace {

constexpr int kChunk = 128;

struct Options {
  std::string out;
  std::vector<std::string> files;
  std::vector<KvKind> kinds;
  int64_t window = 2048, skip = 256;
};

/// One kind's losses, a value a scored position.
struct Losses {
  std::vector<double> kld;
  std::vector<int64_t> position;
  int64_t same_top = 0;
  double nll = 0;
};

struct Distribution {
  std::vector<double> log_p;
  size_t top = 0;
  void set(std::span<const float> logits) {
    top = static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    double sum = 0;
    for (const float x : logits) sum += std::exp(static_cast<double>(x - logits[top]));
    const double norm = static_cast<double>(logits[top]) + std::log(sum);
    log_p.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) log_p[i] = static_cast<double>(logits[i]) - norm;
  }
};

double divergence(const Distribution& p, const Distribution& q) {
  double sum = 0;
  for (size_t i = 0; i < p.log_p.size(); ++i) sum += std::exp(p.log_p[i]) * (p.log_p[i] - q.log_p[i]);
  return sum;
}

class Quality {
 public:
  explicit Quality(const Options& options) : options_(options), losses_(options.kinds.size()) {
    load_ = load_rank_checkpoint(options.out, {});
    load_->wait();
    for (const KvKind kind : options.kinds) {
      RunnerOptions runner;
      runner.kv = kind;
      runner.max_batch_tokens = kChunk;
      runner.n_pages = options.window / kPageTokens + 1;
      runner.n_exact_pages = is_compressed(kind) ? exact_pages_for(1, kChunk, runner.n_pages) : 0;
      runners_.push_back(make_runner(load_->config(), load_->weights(), runner));
    }
  }

  void window(std::span<const int> ids) {
    std::vector<PageTable> tables;
    for (const auto& runner : runners_) {
      tables.emplace_back(runner->pool(), runner->exact_pool());
      if (!tables.back().try_reserve(static_cast<int64_t>(ids.size()))) std::abort();
    }
    for (size_t begin = 0; begin < ids.size(); begin += kChunk) {
      const auto tokens = ids.subspan(begin, std::min<size_t>(kChunk, ids.size() - begin));
      std::vector<Distribution> exact(tokens.size());
      for (size_t k = 0; k < runners_.size(); ++k) {
        const SequenceChunk chunk{tokens, static_cast<int64_t>(begin), &tables[k], static_cast<int>(tokens.size())};
        runners_[k]->forward({&chunk, 1}, logits_);
        tables[k].release_exact(static_cast<int64_t>(begin + tokens.size()));
        for (size_t i = 0; i < tokens.size(); ++i) {
          if (static_cast<int64_t>(begin + i) < options_.skip || begin + i + 1 >= ids.size()) continue;
          score(k, exact[i], i, static_cast<int64_t>(begin + i), static_cast<size_t>(ids[begin + i + 1]));
        }
      }
    }
  }

  void print() const {
    const ModelConfig& c = load_->config();
    std::printf("%zu positions in windows of %ld, from position %ld on; K+V bytes a head of %d\n",
                losses_[0].kld.size(), static_cast<long>(options_.window), static_cast<long>(options_.skip),
                c.head_dim);
    std::printf("| kv | bytes | PPL %% | mean KLD | p99 | p99.9 | same top-1 %% | KLD by quarter of the window |\n");
    std::printf("|---|---|---|---|---|---|---|---|\n");
    for (size_t k = 0; k < losses_.size(); ++k) print(options_.kinds[k], losses_[k]);
  }

 private:
  void score(size_t k, Distribution& exact, size_t row, int64_t position, size_t next) {
    const auto vocab = static_cast<size_t>(load_->config().vocab_size);
    const std::span<const float> logits(logits_.data() + row * vocab, vocab);
    if (k == 0) exact.set(logits);
    found_.set(logits);
    Losses& losses = losses_[k];
    losses.kld.push_back(divergence(exact, found_));
    losses.position.push_back(position);
    losses.same_top += exact.top == found_.top ? 1 : 0;
    losses.nll -= found_.log_p[next];
  }

  void print(KvKind kind, const Losses& losses) const {
    std::vector<double> sorted = losses.kld;
    std::sort(sorted.begin(), sorted.end());
    const auto n = static_cast<double>(sorted.size());
    const auto quantile = [&](double q) { return sorted[static_cast<size_t>(q * (n - 1))]; };
    double sum = 0, quarters[4] = {}, counts[4] = {};
    for (size_t i = 0; i < losses.kld.size(); ++i) {
      const auto quarter = static_cast<size_t>(
          std::min<int64_t>(3, (losses.position[i] - options_.skip) * 4 / (options_.window - options_.skip)));
      sum += losses.kld[i];
      quarters[quarter] += losses.kld[i];
      counts[quarter] += 1;
    }
    const double bytes = static_cast<double>(kv_page_bytes(kind, 1, load_->config().head_dim)) / kPageTokens;
    std::printf("| %s | %.0f | %+.2f | %.7f | %.5f | %.5f | %.2f |", std::string(to_string(kind)).c_str(), bytes,
                100 * (std::exp((losses.nll - losses_[0].nll) / n) - 1), sum / n, quantile(.99), quantile(.999),
                100 * static_cast<double>(losses.same_top) / n);
    for (int i = 0; i < 4; ++i) std::printf(" %.6f", quarters[i] / std::max(1.0, counts[i]));
    std::printf(" |\n");
  }

  const Options options_;
  std::unique_ptr<Load> load_;
  std::vector<std::unique_ptr<Runner>> runners_;
  std::vector<Losses> losses_;
  std::vector<float> logits_;
  Distribution found_;
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
    } else if (word == "--kv") {
      const std::string name = value();
      const auto kind = kv_kind_from(name);
      if (!kind) throw Error(ErrorKind::bad_input, "--kv " + name + " is no kind of KV cache");
      options.kinds.push_back(*kind);
    } else if (options.out.empty()) {
      options.out = word;
    } else {
      options.files.push_back(word);
    }
  }
  if (options.files.empty() || options.window <= options.skip) {
    throw Error(ErrorKind::bad_input,
                "usage: kv_quality OUT IDS.json... [--window N] [--skip N] [--kv KIND]...; each file a JSON list of "
                "token ids, cut into windows");
  }
  if (options.kinds.empty()) options.kinds.assign(std::begin(kKvKinds) + 1, std::end(kKvKinds));
  options.kinds.insert(options.kinds.begin(), KvKind::f32);
  return options;
}

}  // namespace
}  // namespace firstlight

int main(int argc, char** argv) {
  try {
    const firstlight::Options options = firstlight::parse(argc, argv);
    firstlight::Quality quality(options);
    for (const std::string& file : options.files) {
      const auto ids = nlohmann::json::parse(std::ifstream(file)).get<std::vector<int>>();
      const auto window = static_cast<size_t>(options.window);
      for (size_t at = 0; at + window <= ids.size(); at += window) quality.window(std::span(ids).subspan(at, window));
      std::fprintf(stderr, "%s: done\n", file.c_str());
    }
    quality.print();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kv_quality: %s\n", error.what());
    return 1;
  }
  return 0;
}
