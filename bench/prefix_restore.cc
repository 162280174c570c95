// SPDX-License-Identifier: Apache-2.0
// What a prefix of the KV cache restores at, beside the weights' load in the same process: weights alone, the prefix by
// the lanes of a load that is done, and both as `run` reads them, the prefix queued behind the weights. Alternating.
//   prefix_restore OUT FILE [--kv KIND] [--tokens N] [--device cpu|cuda] [--reader pread|io_uring] [--runs N] [--cold]
// FILE is written first, random bytes for OUT's shapes. --cold drops all from the page cache before each read.
#include <fcntl.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/base/timeline.h"
#include "firstlight/ckpt/checked_files.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/manifest.h"
#include "firstlight/cli/bench_rest.h"
#include "firstlight/cli/spread.h"
#include "firstlight/device/buffer.h"
#include "firstlight/io/reader_choice.h"
#include "firstlight/kv/prefix_file.h"
#include "firstlight/kv/prefix_read.h"
#include "firstlight/kv/prefix_write.h"
#include "firstlight/quant/turboquant.h"

namespace {

using namespace firstlight;

struct Options {
  fs::path out, file;
  KvKind kv = KvKind::bf16;
  int64_t tokens = 32768;
  Device device;
  ReaderKind reader = ReaderKind::pread;
  int runs = 7;
  bool cold = false;
};

Options parse(int argc, char** argv) {
  Options options;
  std::vector<std::string> paths;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (!name.starts_with("--")) {
      paths.push_back(name);
      continue;
    }
    i += name == "--cold" ? 0 : 1;
    if (name == "--cold") options.cold = true;
    if (name == "--kv") options.kv = kv_kind_from(value).value();
    if (name == "--tokens") options.tokens = std::stoll(value) / kPageTokens * kPageTokens;
    if (name == "--device") options.device.kind = value == "cuda" ? Device::Kind::cuda : Device::Kind::cpu;
    if (name == "--reader") options.reader = value == "io_uring" ? ReaderKind::io_uring : ReaderKind::pread;
    if (name == "--runs") options.runs = std::stoi(value);
  }
  if (paths.size() != 2) throw Error(ErrorKind::bad_input, "prefix_restore OUT FILE [options]");
  options.out = paths[0];
  options.file = paths[1];
  return options;
}

PrefixInfo info_of(const Options& options) {
  const Manifest manifest = read_manifest(options.out);
  const ModelConfig config = parse_hf_config(read_listed(options.out, manifest, "config.json"));
  PrefixInfo info;
  info.model = "xxh3:0";
  info.computed_by = "random";
  info.kind = options.kv;
  info.seed = is_compressed(options.kv) ? turboquant::kSeed : 0;
  info.n_layers = config.n_layers;
  info.n_kv_heads = config.n_kv_heads;
  info.head_dim = config.head_dim;
  info.tokens.assign(static_cast<size_t>(options.tokens), 1);
  return info;
}

/// Pages of one rank in fresh memory, which a sequence of the prefix's length has taken.
struct Cache {
  Cache(const PrefixInfo& info, Device device)
      : pool(info.n_pages()),
        exact_pool(info.n_exact()),
        table(pool, info.n_exact() > 0 ? &exact_pool : nullptr),
        pages(device, info.page_bytes() * static_cast<uint64_t>(info.n_pages())),
        exact(device, info.exact_page_bytes() * static_cast<uint64_t>(info.n_exact())) {
    if (!table.try_reserve(info.n_pages() * kPageTokens)) throw Error(ErrorKind::bug, "no pages");
    table.hold_exact_before(info.n_pages() * kPageTokens);
    rank = {device, pages.data(), info.page_bytes(), exact.data(), info.exact_page_bytes()};
  }
  PagePool pool, exact_pool;
  PageTable table;
  Buffer pages, exact;
  RankPages rank;
};

void write_file(const Options& options, const PrefixInfo& info) {
  const Cache cache(info, {});
  std::mt19937_64 random(1);
  for (const Buffer* buffer : {&cache.pages, &cache.exact}) {
    for (uint64_t at = 0; at + sizeof(uint64_t) <= buffer->size(); at += sizeof(uint64_t)) {
      const uint64_t word = random();
      std::memcpy(buffer->data() + at, &word, sizeof word);
    }
  }
  write_prefix(options.file, info, {&cache.rank, 1}, cache.table);
}

/// Into the page cache, or out of it.
void set_cached(const Options& options) {
  std::vector<fs::path> paths{options.file};
  for (const auto& entry : fs::recursive_directory_iterator(options.out)) {
    if (entry.is_regular_file()) paths.push_back(entry.path());
  }
  std::vector<std::byte> piece(16u << 20);
  for (const fs::path& path : paths) {
    const auto file = File::open(path);
    if (options.cold) posix_fadvise(file->fd(), 0, 0, POSIX_FADV_DONTNEED);
    for (uint64_t at = 0; !options.cold && at < file->size(); at += piece.size())
      file->read(at, std::span(piece).first(std::min<uint64_t>(piece.size(), file->size() - at)));
  }
}

void print(const char* name, const std::vector<double>& values, const char* unit) {
  const cli::Spread spread(values);
  std::printf("%-44s %7.3f%s (%.3f-%.3f)\n", name, spread.median, unit, spread.least, spread.most);
}

/// What a block has freed is not to slow the next one's copies.
void rest(const Options& options, uint64_t freed) {
  if (options.device.kind == Device::Kind::cuda) cli::rest_after_freeing(freed);
}

void measure(const Options& options) {
  const PrefixInfo info = info_of(options);
  write_file(options, info);
  set_cached(options);
  LoadOptions load;
  load.device = options.device;
  load.make_reader = [&](int n) { return make_reader({options.reader, "asked for"}, n); };
  std::vector<double> weights, prefix, both, prefix_share, both_share;
  const auto gb = [](uint64_t bytes, double seconds) { return static_cast<double>(bytes) / seconds / 1e9; };
  for (int i = -1; i < options.runs; ++i) {  // the first is not counted
    if (options.cold) set_cached(options);
    const auto begin_read = [&](Load& of, const Cache& cache) {
      ReadLane* const lane = of.lanes().at(0);
      return std::make_unique<PrefixRead>(PrefixFile(options.file), std::span(&lane, 1), std::span(&cache.rank, 1),
                                          cache.table);
    };
    double alone = 0, behind = 0, together = 0;
    uint64_t alone_bytes = 0;
    {
      const auto first = load_rank_checkpoint(options.out, load);
      const LoadReport report = first->wait();
      alone = gb(report.bytes, report.seconds);
      const Cache cache(info, options.device);
      const PrefixRead::Report read = begin_read(*first, cache)->wait();
      behind = gb(read.bytes, read.end_s - read.begin_s);
      alone_bytes = report.bytes + read.bytes;
    }
    rest(options, alone_bytes);
    if (options.cold) set_cached(options);
    {
      const Cache cache(info, options.device);
      const auto second = load_rank_checkpoint(options.out, load);
      const PrefixRead::Report read = begin_read(*second, cache)->wait();
      const LoadReport report = second->wait();
      together = gb(report.bytes + read.bytes, read.end_s - report.begin_s);
    }
    rest(options, alone_bytes);
    if (i < 0) continue;
    weights.push_back(alone);
    prefix.push_back(behind);
    both.push_back(together);
    prefix_share.push_back(behind / alone);
    both_share.push_back(together / alone);
  }
  std::printf("%s, %s, %lld tokens, %.1f MB of prefix\n", to_string(options.device).c_str(),
              std::string(to_string(options.kv)).c_str(), static_cast<long long>(options.tokens),
              1e-6 * static_cast<double>(fs::file_size(options.file)));
  print("weights alone", weights, " GB/s");
  print("prefix, the load is done", prefix, " GB/s");
  print("weights and prefix behind them", both, " GB/s");
  print("prefix / weights alone", prefix_share, "");
  print("weights and prefix / weights alone", both_share, "");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    measure(parse(argc, argv));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "prefix_restore: %s\n", e.what());
    return 1;
  }
  return 0;
}
