// SPDX-License-Identifier: Apache-2.0
// firstlight bench load --device cuda: whole loads into GPUs, every leaf hashed there or none, beside copies from
// pinned memory to the same GPUs at once, in turn in one process whose contexts stand.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <optional>
#include <thread>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/manifest.h"
#include "firstlight/cli/bench_load.h"
#include "firstlight/cli/bench_peers.h"
#include "firstlight/cli/bench_rest.h"
#include "firstlight/cli/session.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/gpus.h"
#include "firstlight/io/staging.h"

namespace firstlight::cli {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// Pinned memory of one GPU, copied to it over and over: 4 x 64 MiB, so that the gaps between copies do not count.
class PinnedFloor {
 public:
  explicit PinnedFloor(Device device)
      : staging_(make_staging(device, {4, 64u << 20})), into_(device, 4 * staging_->slot_bytes()) {
    uint64_t random = 88172645463325252u;
    for (int i = 0; i < staging_->n_slots(); ++i) {
      for (uint64_t at = 0; at < staging_->slot_bytes(); at += sizeof random) {  // not zeros, which may go faster
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        std::memcpy(staging_->slot(i) + at, &random, sizeof random);
      }
      staging_->prepare(i);
    }
  }
  void copy(uint64_t bytes) {
    const uint64_t step = staging_->slot_bytes();
    const int n = staging_->n_slots();
    const auto finish = [&](int slot) {
      while (!staging_->finished(slot)) std::this_thread::yield();
    };
    std::vector<bool> busy(static_cast<size_t>(n));
    int slot = 0;
    for (uint64_t at = 0; at < bytes; at += step, slot = (slot + 1) % n) {
      if (busy[static_cast<size_t>(slot)]) finish(slot);
      staging_->start(slot, into_.data() + step * static_cast<uint64_t>(slot), std::min(step, bytes - at));
      busy[static_cast<size_t>(slot)] = true;
    }
    for (int i = 0; i < n; ++i) {
      if (busy[static_cast<size_t>(i)]) finish(i);
    }
  }

 private:
  std::unique_ptr<Staging> staging_;
  Buffer into_;
};

struct GpuBench {
  const BenchLoadOptions& options;
  Context& context;
  std::vector<Device> devices;   // of each rank
  std::vector<Device> distinct;  // GPUs in use
  std::vector<std::unique_ptr<PinnedFloor>> floors;
  uint64_t bytes = 0;
  BenchLoadReport report;
};

LoadOptions load_options(const GpuBench& bench, Verify verify) {
  LoadOptions options;
  options.tp = bench.report.tp;
  options.device = bench.devices[0];
  options.devices = bench.devices;
  options.verify = verify;
  options.n_threads = bench.options.threads;
  options.stop = bench.context.stop;
  return options;
}

/// What was given back is nothing that the next measurement pays for: neither by copies beside the clearing, nor by the
/// first allocation behind it, which takes the driver 4 to 6 ms, whatever its size, and in a fresh process 0.1 (one
/// H200, 16 GB given back 0.2 s before).
void rest(const GpuBench& bench) {
  rest_after_freeing(bench.bytes / bench.distinct.size());
  for (const Device device : bench.distinct) const Buffer first(device, 2u << 20, Reach::own);
}

/// From the call to the last leaf checked: mapping and pinning of the rings and the arenas' allocation included, giving
/// all that back not.
double load_once(const GpuBench& bench, const LoadOptions& options) {
  const auto begin = Clock::now();
  std::unique_ptr<Load> load = load_rank_checkpoint(bench.options.model, options);
  load->wait();
  const double seconds = seconds_since(begin);
  load.reset();
  rest(bench);
  return seconds;
}

double floor_once(GpuBench& bench) {
  const uint64_t each = bench.bytes / bench.floors.size();
  const auto begin = Clock::now();
  {
    std::vector<std::jthread> threads;
    for (auto& floor : bench.floors) {
      threads.emplace_back([&floor, each] { floor->copy(each); });
    }
  }
  return seconds_since(begin);
}

/// VmHWM and the like of this process, bytes.
uint64_t status_bytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key + ":")) return 1024 * std::strtoull(line.c_str() + key.size() + 1, nullptr, 10);
  }
  return 0;
}

/// What one load takes beside its weights.
std::string memory_note(GpuBench& bench) {
  const uint64_t anon_before = status_bytes("RssAnon");
  std::vector<uint64_t> free_before;
  for (const Device device : bench.distinct) free_before.push_back(free_memory(device));
  uint64_t anon = 0;
  LoadOptions options = load_options(bench, Verify::full);
  options.progress = [&, before = anon_before](uint64_t done, uint64_t total) {
    if (done == total) anon = std::max(anon, status_bytes("RssAnon") - before);
  };
  Timeline timeline;
  options.timeline = &timeline;
  const double begin = seconds_since_exec();
  std::unique_ptr<Load> load = load_rank_checkpoint(bench.options.model, options);
  uint64_t on_gpus = 0, arenas = 0;
  for (size_t i = 0; i < bench.distinct.size(); ++i) on_gpus += free_before[i] - free_memory(bench.distinct[i]);
  for (const RankWeights& weights : load->weights()) arenas += weights.arena.size();
  load->wait();
  load.reset();
  rest(bench);
  for (const Phase& phase : timeline.phases()) {
    bench.report.phases.push_back({phase.name, phase.start_s - begin, phase.end_s - begin});
  }
  const auto n = static_cast<double>(bench.distinct.size());
  return str("Memory of one load, a GPU: ", human_bytes(static_cast<double>(anon) / n),
             " of the host's beside the page cache (ring included), ",
             human_bytes((static_cast<double>(on_gpus) - static_cast<double>(arenas)) / n),
             " of the GPU's beside the weights.");
}

/// Pieces × slots × threads, whole verified loads.
void bench_sweep(GpuBench& bench) {
  struct Candidate {
    ReadPattern pattern;
    std::vector<double> seconds = {};
  };
  std::vector<Candidate> all;
  const uint64_t read = parse_size(bench.options.read, "--read");
  if (read == 0 || read % 4096 != 0) throw Error(ErrorKind::bad_input, "--read: no whole pages");
  for (const std::string& text : bench.options.pieces) {
    const uint64_t piece = parse_size(text, "--pieces");
    if (piece == 0 || piece % 4096 != 0) throw Error(ErrorKind::bad_input, str("--pieces ", text, ": no whole pages"));
    for (const int threads : bench.options.sweep_threads) {
      for (const int slots : bench.options.in_flight) all.push_back({{piece, slots, threads}});
    }
  }
  for (int round = 0; round < std::min(bench.options.n, 3); ++round) {
    for (Candidate& candidate : all) {
      if (bench.context.stop.stop_requested()) throw Interrupted();
      const ReadPattern& pattern = candidate.pattern;
      LoadOptions options = load_options(bench, Verify::full);
      options.n_threads = pattern.threads * static_cast<int>(bench.distinct.size());
      options.make_staging = [&pattern, read](Device device) {
        return make_staging(device, {pattern.in_flight, pattern.piece, read});
      };
      candidate.seconds.push_back(load_once(bench, options));
    }
  }
  bench.report.sweep_bytes = bench.bytes;
  for (const Candidate& candidate : all) {
    bench.report.sweep.push_back({"load by pread", "warm", candidate.pattern, Spread(candidate.seconds)});
  }
}

void measure(GpuBench& bench, const Manifest& manifest) {
  BenchLoadReport& report = bench.report;
  say(bench.context, "whole loads …");
  const std::string gpus_text = bench.distinct.size() == 1 ? "the GPU" : str(bench.distinct.size(), " GPUs at once");
  report.loads.push_back({str("floor: pinned memory to ", gpus_text), "warm", "", true, bench.bytes,
                          [&bench] { return floor_once(bench); }});
  for (const std::string& name : bench.options.verify) {
    const Verify verify = name == "full" ? Verify::full : Verify::off;
    report.loads.push_back({"load by pread", "warm", name, false, bench.bytes,
                            [&bench, verify] { return load_once(bench, load_options(bench, verify)); }});
  }
  std::optional<Peers> peers;
  if (bench.options.peers) {
    peers.emplace(bench.context, bench.options.model, manifest, bench.options.python,
                  static_cast<int>(bench.distinct.size()), /*gpu=*/true);
    for (const BenchSeries& series : peers->series()) report.loads.push_back(series);
    report.note += peers->note();
  }
  load_once(bench, load_options(bench, Verify::off));  // fills the page cache
  measure_in_turn(report.loads, bench.options.n, bench.context.stop);
  report.note += memory_note(bench);
  if (!bench.options.sweep) return;
  say(bench.context, "pieces × slots × threads …");
  bench_sweep(bench);
}

}  // namespace

BenchLoadReport bench_load_gpu(Context& context, const BenchLoadOptions& given) {
  const Manifest manifest = read_manifest(given.model);
  const int tp = given.tp != 0 ? given.tp : default_tp(manifest, 1);
  show_gpus(tp);
  use_few_queues();
  const DeviceChoice choice = choose_device(given.device, gpus());
  GpuBench bench{given, context, rank_devices(given.device, choice.device, tp, gpus()), {}, {}, 0, {}};
  const ManifestTp* stored = manifest.find_tp(tp);
  if (stored == nullptr) throw Error(ErrorKind::not_found, str("tp ", tp, " is not stored in '", given.model, "'"));
  for (const ManifestRank& rank : stored->ranks) bench.bytes += rank.total_bytes();
  for (const Device device : bench.devices) {
    if (std::find(bench.distinct.begin(), bench.distinct.end(), device) != bench.distinct.end()) continue;
    bench.distinct.push_back(device);
    start_device(device);
    bench.floors.push_back(std::make_unique<PinnedFloor>(device));
  }
  BenchLoadReport& report = bench.report;
  report.model = given.model;
  report.tp = tp;
  report.n = given.n;
  report.threads = given.threads;
  report.device = str(bench.distinct.size(), " x ", choice.why);
  measure(bench, manifest);
  return std::move(bench.report);
}

}  // namespace firstlight::cli
