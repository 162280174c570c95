// SPDX-License-Identifier: Apache-2.0
// A rank checkpoint's forward pass on one device, without text: how fast a prompt is taken in, and a decoding step at
// several batch sizes beside the floor that reading weights and KV once sets.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/device/gpus.h"
#include "firstlight/model/runner.h"

namespace firstlight {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string out, device = "auto";
  int64_t n_prompt = 2048, context = 512;
  int n_steps = 48;
  double read_gb_per_s = 0;
  std::vector<int> batches = {1, 8, 32};
};

double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Sequence {
  std::vector<int> ids;
  PageTable pages;
};

class Bench {
 public:
  Bench(const Options& options) : options_(options) {
    LoadOptions load;
    load.device = choose_device(options.device, gpus()).device;
    start_device(load.device);
    load_ = load_rank_checkpoint(options.out, load);
    const int most = *std::max_element(options.batches.begin(), options.batches.end());
    RunnerOptions runner;
    runner.max_batch_tokens = static_cast<int>(std::max<int64_t>(options.n_prompt, most));
    const int64_t longest = std::max(options.n_prompt, options.context + options.n_steps + 8);
    runner.n_pages = (longest / kPageTokens + 2) * most;
    runner_ = make_runner(load_->config(), load_->weights(), runner);
    const LoadReport report = load_->wait();
    weight_bytes_ = report.bytes;
    // The embedding table is read a row a token, unless it is the head, too.
    if (!load_->config().tied_embeddings)
      weight_bytes_ -= load_->weights()[0].tensors.at("model.embed_tokens.weight").size_bytes;
    token_bytes_ = kv_page_bytes(load_->config(), 1, KvKind::bf16) / kPageTokens;
    std::printf("%s, loaded %.2f GB at %.1f GB/s; computed by %s\n", to_string(load.device).c_str(),
                static_cast<double>(report.bytes) / 1e9, static_cast<double>(report.bytes) / report.seconds / 1e9,
                std::string(runner_->ops_name()).c_str());
  }

  void prompt() {
    std::vector<double> seconds;
    for (int round = 0; round < 7; ++round) {
      Sequence sequence{random_ids(options_.n_prompt), PageTable(runner_->pool())};
      const auto begin = Clock::now();
      feed(sequence, options_.n_prompt);
      if (round > 1) seconds.push_back(since(begin));
    }
    const ModelConfig& c = load_->config();
    const double per_layer =
        static_cast<double>(c.dim) * c.head_dim * (2.0 * c.n_heads + 2.0 * c.n_kv_heads) + 3.0 * c.dim * c.hidden_dim;
    const double tflop = 2e-12 * per_layer * c.n_layers * static_cast<double>(options_.n_prompt);
    std::printf("prompt of %ld: %.2f ms, %.0f tokens/s, %.1f TFLOP/s in the layers' products\n",
                static_cast<long>(options_.n_prompt), 1e3 * median(seconds),
                static_cast<double>(options_.n_prompt) / median(seconds), tflop / median(seconds));
  }

  void decode(int n) {
    std::vector<Sequence> all;
    all.reserve(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) {
      all.push_back({random_ids(options_.context), PageTable(runner_->pool())});
      feed(all.back(), options_.context);
    }
    std::vector<double> seconds;
    std::vector<Likeliest> likeliest;
    for (int step = 0; step < options_.n_steps; ++step) {
      std::vector<SequenceChunk> batch;
      for (Sequence& sequence : all) {
        sequence.ids.push_back(next_id());
        if (!sequence.pages.try_reserve(static_cast<int64_t>(sequence.ids.size()))) std::exit(1);
        batch.push_back(
            {std::span(sequence.ids).last(1), static_cast<int64_t>(sequence.ids.size()) - 1, &sequence.pages, 1});
      }
      const auto begin = Clock::now();
      runner_->forward_greedy(batch, likeliest);
      if (step >= 8) seconds.push_back(since(begin));  // the first ones make device graphs
    }
    const double read =
        static_cast<double>(weight_bytes_) +
        static_cast<double>(token_bytes_) * n * static_cast<double>(options_.context + options_.n_steps / 2);
    const double step = median(seconds);
    std::sort(seconds.begin(), seconds.end());
    std::printf("batch %d at context %ld: %.3f ms a step (%.3f–%.3f), %.1f tokens/s, %.0f GB/s", n,
                static_cast<long>(options_.context), 1e3 * step, 1e3 * seconds.front(), 1e3 * seconds.back(), n / step,
                read / step / 1e9);
    if (options_.read_gb_per_s > 0)
      std::printf(", %.1f %% of the read rate", 100 * read / step / 1e9 / options_.read_gb_per_s);
    std::printf("\n");
  }

 private:
  int next_id() { return static_cast<int>(random_() % static_cast<uint64_t>(load_->config().vocab_size)); }
  std::vector<int> random_ids(int64_t n) {
    std::vector<int> ids(static_cast<size_t>(n));
    for (int& id : ids) id = next_id();
    return ids;
  }
  void feed(Sequence& sequence, int64_t n) {
    if (!sequence.pages.try_reserve(n)) std::exit(1);
    std::vector<float> logits;
    for (int64_t at = 0; at < n; at += options_.n_prompt) {
      const auto size = static_cast<size_t>(std::min(options_.n_prompt, n - at));
      const SequenceChunk chunk{std::span(sequence.ids).subspan(static_cast<size_t>(at), size), at, &sequence.pages, 1};
      runner_->forward({&chunk, 1}, logits);
    }
  }

  Options options_;
  std::unique_ptr<Load> load_;
  std::unique_ptr<Runner> runner_;
  std::mt19937_64 random_{7};
  uint64_t weight_bytes_ = 0, token_bytes_ = 0;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&] {
      return i + 1 < argc ? std::string(argv[++i]) : throw Error(ErrorKind::bad_input, word + " wants a value");
    };
    if (word == "--device") {
      options.device = value();
    } else if (word == "--prompt") {
      options.n_prompt = std::stoll(value());
    } else if (word == "--context") {
      options.context = std::stoll(value());
    } else if (word == "--batch") {
      options.batches = {std::stoi(value())};
    } else if (word == "--read-gb-per-s") {
      options.read_gb_per_s = std::stod(value());
    } else {
      options.out = word;
    }
  }
  if (options.out.empty()) {
    throw Error(ErrorKind::bad_input,
                "usage: model_bench OUT [--device D] [--prompt N] [--context N] [--batch N] [--read-gb-per-s X]");
  }
  return options;
}

}  // namespace
}  // namespace firstlight

int main(int argc, char** argv) {
  try {
    const firstlight::Options options = firstlight::parse(argc, argv);
    firstlight::Bench bench(options);
    bench.prompt();
    for (const int n : options.batches) bench.decode(n);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "model_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
