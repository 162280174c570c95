// SPDX-License-Identifier: Apache-2.0
// firstlight bench load: loading into host memory by each reader, page cache cold and warm, beside the floor, in turn
// in one process.
#include "firstlight/cli/bench_load.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/manifest.h"
#include "firstlight/cli/arguments.h"
#include "firstlight/cli/bench_peers.h"
#include "firstlight/cli/session.h"
#include "firstlight/io/mount.h"
#include "firstlight/io/ring.h"

namespace firstlight::cli {

namespace {

struct Benched {
  const BenchLoadOptions& options;
  Context& context;
  const Manifest& manifest;
  BenchLoadReport report;
  std::unique_ptr<ReadBench> whole;  ///< all bytes of the tp
  std::unique_ptr<ReadBench> part;   ///< the first of them
  std::optional<Peers> peers = std::nullopt;
  bool has_uring = false, has_cold = false;
};

std::vector<std::shared_ptr<const File>> part_files(const fs::path& out, const Manifest& manifest, int tp) {
  const ManifestTp* stored = manifest.find_tp(tp);
  if (stored == nullptr) throw Error(ErrorKind::not_found, str("tp ", tp, " is not stored in '", out.native(), "'"));
  std::vector<std::shared_ptr<const File>> files;
  for (const ManifestRank& rank : stored->ranks) {
    for (const ManifestPart& part : rank.parts) files.push_back(open_listed(out, manifest, part.file));
  }
  return files;
}

double load_once(const Benched& bench, ReaderKind kind, const std::string& verify, bool is_cold) {
  LoadOptions options;
  options.tp = bench.report.tp;
  options.verify = verify == "full" ? Verify::full : Verify::off;
  options.n_threads = bench.report.threads;
  options.stop = bench.context.stop;
  options.make_reader = [kind, is_cold](int n_threads) {
    return make_reader({.kind = kind, .why = "measured", .cold = is_cold}, n_threads);
  };
  const auto begin = std::chrono::steady_clock::now();
  const std::unique_ptr<Load> load = load_rank_checkpoint(bench.options.model, options);
  load->wait();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Half as many threads as a load has, as many, twice as many: copies from the page cache may be the fastest with any.
std::vector<int> floor_threads(int n) {
  std::vector<int> threads;
  for (const int one : {n / 2, n, 2 * n}) {
    if (one > 0) threads.push_back(one);
  }
  return threads;
}

std::string floor_name(std::string_view call, int threads) {
  return str("floor: ", call, " into new memory, ", threads, threads == 1 ? " thread" : " threads");
}

bool measures(const BenchLoadOptions& options, std::string_view state) {
  return std::find(options.states.begin(), options.states.end(), state) != options.states.end();
}

/// run() with the files in that state, and memory as new as a load's.
std::function<double()> in_state(ReadBench& whole, bool is_cold, std::function<double()> run) {
  return [&whole, is_cold, run = std::move(run)] {
    if (is_cold) {
      whole.make_cold();
    } else {
      whole.make_warm();
    }
    whole.stir_memory();
    return run();
  };
}

/// Whole loads and their floors, which read as a load does: pieces of the same size into memory that is as new.
void add_warm_series(Benched& bench) {
  BenchLoadReport& report = bench.report;
  ReadBench& whole = *bench.whole;
  const auto warm = [&whole](std::function<double()> run) { return in_state(whole, false, std::move(run)); };
  for (const int threads : floor_threads(report.threads)) {
    const ReadPattern floor{.threads = threads};
    report.loads.push_back({floor_name("pread(2)", threads), "warm", "", true, whole.bytes(),
                            warm([&whole, floor] { return whole.by_system_calls(false, true, floor); })});
  }
  for (const std::string& verify : bench.options.verify) {
    report.loads.push_back({"load by pread", "warm", verify, false, whole.bytes(),
                            warm([&bench, verify] { return load_once(bench, ReaderKind::pread, verify, false); })});
  }
  if (!bench.options.peers) return;
  bench.peers.emplace(bench.context, bench.options.model, bench.manifest, bench.options.python, report.tp,
                      /*gpu=*/false);
  for (const BenchSeries& peer : bench.peers->series()) {
    report.loads.push_back(peer);
    report.loads.back().run = warm(peer.run);
  }
  report.note += bench.peers->note();
}

void add_cold_series(Benched& bench) {
  BenchLoadReport& report = bench.report;
  ReadBench& whole = *bench.whole;
  const auto cold = [&whole](std::function<double()> run) { return in_state(whole, true, std::move(run)); };
  for (const int threads : {8, 16, 32}) {  // a thread for each request under way
    const ReadPattern floor{.in_flight = threads};
    report.loads.push_back({floor_name("pread(2) with O_DIRECT", threads), "cold", "", true, whole.bytes(),
                            cold([&whole, floor] { return whole.by_system_calls(true, true, floor); })});
  }
  for (const std::string& reader : bench.options.readers) {
    const ReaderKind kind = reader == "io_uring"   ? ReaderKind::io_uring
                            : reader == "buffered" ? ReaderKind::pread
                                                   : ReaderKind::pread_direct;
    if (kind == ReaderKind::io_uring && !bench.has_uring) continue;
    const char* how = reader == "buffered" ? ", through the page cache" : reader == "pread" ? " with O_DIRECT" : "";
    const std::string name = str("load by ", reader == "buffered" ? "pread" : reader, how);
    for (const std::string& verify : bench.options.verify) {
      report.loads.push_back({name, "cold", verify, false, whole.bytes(),
                              cold([&bench, kind, verify] { return load_once(bench, kind, verify, true); })});
    }
  }
}

void bench_loads(Benched& bench) {
  if (measures(bench.options, "warm")) add_warm_series(bench);
  if (bench.has_cold && measures(bench.options, "cold")) add_cold_series(bench);
  const auto is_floor = [](const BenchSeries& series) { return series.is_floor; };
  if (std::all_of(bench.report.loads.begin(), bench.report.loads.end(), is_floor))
    throw Error(ErrorKind::unsupported, "no load is left to measure. " + bench.report.note);
  measure_in_turn(bench.report.loads, bench.options.n, bench.context.stop);
}

double read_part(Benched& bench, ReaderKind kind, const ReadPattern& pattern, uint64_t bytes) {
  if (bench.context.stop.stop_requested()) throw Interrupted();
  if (kind == ReaderKind::io_uring) {
    bench.part->make_cold();
  } else {
    bench.part->make_warm();
  }
  return bench.part->by_reader(kind, pattern, bytes);
}

/// Pieces × in flight × threads; each pattern once a round.
void bench_sweep(Benched& bench) {
  struct Candidate {
    ReaderKind kind;
    ReadPattern pattern;
    std::vector<double> seconds = {};
  };
  std::vector<Candidate> all;
  for (const std::string& text : bench.options.pieces) {
    const uint64_t piece = parse_size(text, "--pieces");
    if (piece == 0 || piece % 4096 != 0) throw Error(ErrorKind::bad_input, str("--pieces ", text, ": no whole pages"));
    for (const int threads : bench.options.sweep_threads) {
      all.push_back({ReaderKind::pread, {piece, threads, threads}});
      if (!bench.has_uring || !bench.has_cold) continue;
      for (const int in_flight : bench.options.in_flight) {
        if (in_flight >= threads) all.push_back({ReaderKind::io_uring, {piece, in_flight, threads}});
      }
    }
  }
  const int rounds = std::min(bench.options.n, 3);
  for (int round = 0; round < rounds; ++round) {
    for (Candidate& candidate : all) {
      candidate.seconds.push_back(read_part(bench, candidate.kind, candidate.pattern, bench.part->bytes()));
    }
  }
  for (const Candidate& candidate : all) {
    const bool uring = candidate.kind == ReaderKind::io_uring;
    bench.report.sweep.push_back(
        {uring ? "io_uring" : "pread", uring ? "cold" : "warm", candidate.pattern, Spread(candidate.seconds)});
  }
}

/// An eighth, a quarter, a half and all of the bytes: what a start costs beside its bytes is the intercept.
void bench_lines(Benched& bench) {
  for (const ReaderKind kind : {ReaderKind::pread, ReaderKind::io_uring}) {
    const bool uring = kind == ReaderKind::io_uring;
    if (uring && (!bench.has_uring || !bench.has_cold)) continue;
    ReadPattern pattern;
    pattern.threads = bench.report.threads;
    pattern.in_flight = std::max(pattern.in_flight, pattern.threads);
    std::vector<std::vector<double>> seconds(4);
    for (int round = 0; round < bench.options.n; ++round) {
      for (size_t i = 0; i < 4; ++i)
        seconds[i].push_back(read_part(bench, kind, pattern, bench.part->bytes() >> (3 - i)));
    }
    BytesLine line{uring ? "io_uring" : "pread", uring ? "cold" : "warm", {}};
    for (size_t i = 0; i < 4; ++i) {
      line.points.push_back({static_cast<double>(bench.part->bytes() >> (3 - i)), Spread(seconds[i]).median});
    }
    bench.report.lines.push_back(std::move(line));
  }
}

/// fio is the known yardstick: where it is, the command that reads the same bytes in the same way.
std::string fio_line(const File& file) {
  std::istringstream path(std::getenv("PATH") != nullptr ? std::getenv("PATH") : "");
  for (std::string directory; std::getline(path, directory, ':');) {
    if (::access((directory + "/fio").c_str(), X_OK) != 0) continue;
    return str(
        "fio is installed; the cold floor by it: fio --name=floor --readonly --rw=read --bs=4M --direct=1 "
        "--ioengine=io_uring --iodepth=16 --filename='",
        file.path(), "'");
  }
  return "fio is not installed: the floors are plain system calls.";
}

int print_report(const BenchLoadReport& report, bool json) {
  if (json) {
    print_json(to_json(report));
  } else {
    print(to_markdown(report));
  }
  return 0;
}

int run_bench_load(Context& context, const BenchLoadOptions& given) {
  context.json = given.json;
  BenchLoadOptions options = given;
  if (options.device != "cpu") {
    if (options.sweep_threads.empty()) options.sweep_threads = {8, 12, 16};
    return print_report(bench_load_gpu(context, options), options.json);
  }
  if (options.peers && !measures(options, "warm")) {
    throw Error(ErrorKind::bad_input, "--peers: other loaders read from a warm page cache, which --states leaves out");
  }
  const Manifest manifest = read_manifest(options.model);
  Benched bench{options, context, manifest, {}, nullptr, nullptr};
  BenchLoadReport& report = bench.report;
  report.model = options.model;
  report.tp = options.tp != 0 ? options.tp : default_tp(manifest, 1);
  report.n = options.n;
  report.threads = options.threads > 0 ? options.threads : usable_cores();
  if (options.sweep_threads.empty()) options.sweep_threads = {1};
  if (given.sweep_threads.empty() && report.threads > 1) options.sweep_threads.push_back(report.threads);
  const auto files = part_files(options.model, manifest, report.tp);
  const Mount mount = mount_of(options.model);
  report.file_system = str(mount.type, " ", mount.source);
  report.fio = fio_line(*files.at(0));
  bench.has_uring = why_no_io_uring().empty();
  if (!bench.has_uring) report.note = "io_uring: " + why_no_io_uring() + ". ";
  uint64_t bytes = 0;
  for (const auto& file : files) bytes += file->size();
  const uint64_t free = free_memory({});
  if (2 * bytes > free) {  // the floor's copy and the load's
    throw Error(ErrorKind::out_of_memory, str("bench load takes the weights' ", human_bytes(static_cast<double>(bytes)),
                                              " twice; ", human_bytes(static_cast<double>(free)), " are free"));
  }
  bench.whole = std::make_unique<ReadBench>(files, UINT64_MAX);
  bench.has_cold = bench.whole->make_cold();
  if (!bench.has_cold) report.note += "The files do not leave the page cache: nothing cold can be measured.";
  say(context, "whole loads …");
  bench_loads(bench);
  bench.whole.reset();
  if (options.sweep) {
    bench.part = std::make_unique<ReadBench>(files, parse_size(options.most_bytes, "--bytes"));
    report.sweep_bytes = bench.part->bytes();
    say(context, "pieces × in flight × threads …");
    bench_sweep(bench);
    say(context, "time against bytes …");
    bench_lines(bench);
  }
  return print_report(report, options.json);
}

}  // namespace

void measure_in_turn(std::vector<BenchSeries>& series, int n, const std::stop_token& stop) {
  for (int round = -1; round < n; ++round) {
    for (BenchSeries& one : series) {
      if (stop.stop_requested()) throw Interrupted();
      const double seconds = one.run();
      if (round >= 0) one.seconds.push_back(seconds);
    }
  }
}

void add_bench_load(CLI::App& bench, Action& chosen) {
  auto options = std::make_shared<BenchLoadOptions>();
  CLI::App* command =
      bench.add_subcommand("load", "Loads into host memory by each reader, or into GPUs, beside the floor, in turn");
  command->add_option("MODEL", options->model, "Rank checkpoint")->required();
  command->add_option("--tp", options->tp, "Tensor-parallel ranks (default: what run takes on the CPU)")
      ->check(whole_number(1, 1024));
  command->add_option("--device", options->device, "cpu, or cuda: into GPUs 0 to tp - 1, page cache warm")
      ->capture_default_str();
  command->add_option("-n", options->n, "Rounds")->check(whole_number(1, 10000))->capture_default_str();
  command
      ->add_option("--threads", options->threads,
                   "Reader threads (default: usable cores; into GPUs as the load chooses)")
      ->check(whole_number(1, 4096));
  command->add_option("--bytes", options->most_bytes, "Of the sweep and of time against bytes")->capture_default_str();
  command->add_option("--pieces", options->pieces, "Sizes of requests in the sweep")
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("--in-flight", options->in_flight,
                   "Requests under way at once in the sweep (io_uring); slots of a GPU's ring")
      ->delimiter(',')
      ->check(whole_number(1, 4096))
      ->capture_default_str();
  command
      ->add_option("--sweep-threads", options->sweep_threads,
                   "Threads in the sweep (default: 1 and --threads; a GPU: 8, 12 and 16)")
      ->delimiter(',')
      ->check(whole_number(1, 4096));
  command->add_option("--read", options->read, "Bytes of one read in the sweep of a GPU's loads: a slot takes several")
      ->capture_default_str();
  const auto add_choice = [command](const char* name, std::vector<std::string>& into, const char* help) {
    command->add_option(name, into, help)->delimiter(',')->check(one_of(into))->capture_default_str();
  };
  add_choice("--states", options->states, "Of the page cache, for loads into host memory");
  add_choice("--readers", options->readers, "Of cold loads into host memory; warm ones are by pread");
  add_choice("--verify", options->verify, "Loads that are measured: every leaf hashed, or none");
  command->add_flag_callback(
      "--no-sweep", [options] { options->sweep = false; }, "Whole loads only");
  command->add_flag(
      "--peers", options->peers,
      "Beside other loaders (safetensors, fastsafetensors, InstantTensor, Run:ai Model Streamer) in fresh "
      "Python processes, as far as they are installed; the whole checkpoint, page cache warm");
  command->add_option("--python", options->python, "That has torch and them")->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object on stdout, for tools/plot_load.py");
  command->footer("Example:\n  firstlight bench load smollm2-ranks -n 15 --json > load.json");
  command->callback(
      [options, &chosen] { chosen = [options](Context& context) { return run_bench_load(context, *options); }; });
}

}  // namespace firstlight::cli
