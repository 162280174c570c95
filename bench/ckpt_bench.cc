// SPDX-License-Identifier: Apache-2.0
// Loads a rank checkpoint again and again and prints where the time goes, beside two floors measured in the same run:
// the plain read of the same bytes into fresh memory by as many threads, and a copy of them.
//   ckpt_bench OUT [--tp N] [--threads N] [--runs N] [--no-verify]
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "firstlight/base/hash.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/manifest.h"

namespace {

using namespace firstlight;

struct Series {
  std::vector<double> seconds;
  void add(double s) { seconds.push_back(s); }
  double at(double share) const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1))];
  }
  void print(const char* name, uint64_t bytes) const {
    std::printf("%-28s least %7.2f ms  median %7.2f ms", name, 1e3 * at(0), 1e3 * at(0.5));
    if (bytes != 0) std::printf("  %6.2f GB/s (least)", 1e-9 * static_cast<double>(bytes) / at(0));
    std::printf("\n");
  }
};

/// The floor: whole parts into fresh huge pages, 4 MiB a call, no queue, no hash.
double plain_read(const std::vector<std::shared_ptr<const File>>& files, int n_threads) {
  const double begin = seconds_since_exec();
  uint64_t total = 0;
  for (const auto& file : files) total += file->size();
  Buffer into({}, total);
  std::atomic<uint64_t> next{0};
  const auto work = [&] {
    constexpr uint64_t kPiece = 4u << 20;
    for (;;) {
      uint64_t at = next.fetch_add(kPiece);
      if (at >= total) return;
      const uint64_t to = at;
      size_t f = 0;
      while (at >= files[f]->size()) at -= files[f++]->size();
      if (pread(files[f]->fd(), into.data() + to, std::min(kPiece, files[f]->size() - at), static_cast<off_t>(at)) < 0)
        return;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < n_threads; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  return seconds_since_exec() - begin;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: ckpt_bench OUT [--tp N] [--threads N] [--runs N] [--no-verify]\n");
    return 2;
  }
  LoadOptions options;
  int runs = 20;
  for (int i = 2; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--no-verify") options.verify = Verify::off;
    if (i + 1 == argc) continue;
    if (flag == "--tp") options.tp = std::atoi(argv[i + 1]);
    if (flag == "--threads") options.n_threads = std::atoi(argv[i + 1]);
    if (flag == "--runs") runs = std::atoi(argv[i + 1]);
  }
  try {
    const int n_threads = options.n_threads > 0 ? options.n_threads : usable_cores();
    const Manifest manifest = read_manifest(argv[1]);
    std::vector<std::shared_ptr<const File>> files;
    uint64_t bytes = 0;
    const ManifestTp* tp = manifest.find_tp(options.tp);
    if (tp == nullptr) throw std::runtime_error("this tp is not stored");
    for (const ManifestRank& rank : tp->ranks) {
      for (const ManifestPart& part : rank.parts) files.push_back(open_listed(argv[1], manifest, part.file));
      bytes += rank.total_bytes();
    }
    Series whole, floor, hash_cpu;
    std::map<std::string, Series> phases;
    for (int run = 0; run < runs; ++run) {
      floor.add(plain_read(files, n_threads));
      Timeline timeline;
      options.timeline = &timeline;
      const double begin = seconds_since_exec();
      const LoadReport report = load_rank_checkpoint(argv[1], options)->wait();
      whole.add(report.seconds);
      hash_cpu.add(report.verify_cpu_seconds);
      phases["call to wait() and release"].add(seconds_since_exec() - begin);
      for (const Phase& phase : timeline.phases()) phases[phase.name].add(phase.end_s - phase.start_s);
    }
    std::printf("%.1f MB, %d threads, %d runs\n", 1e-6 * static_cast<double>(bytes), n_threads, runs);
    floor.print("floor: plain read", bytes);
    whole.print("load", bytes);
    for (const auto& [name, series] : phases) series.print(("  " + name).c_str(), 0);
    hash_cpu.print("  hashing, CPU", bytes);
    std::printf("share of the floor: %.0f %% (least of each)\n", 100 * floor.at(0) / whole.at(0));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
