// SPDX-License-Identifier: Apache-2.0
// firstlight bench load: what is measured, apart from how it is printed.
#pragma once
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "firstlight/cli/context.h"
#include "firstlight/cli/read_bench.h"
#include "firstlight/cli/spread.h"

namespace firstlight::cli {

struct BenchLoadOptions {
  std::string model, device = "cpu";
  int tp = 0, n = 5, threads = 0;
  std::string most_bytes = "1GiB";  ///< of the sweep and of time against bytes; whole loads take all
  std::string read = "512KiB";      ///< that one read takes, in the sweep of loads into GPUs
  std::vector<std::string> pieces{"1MiB", "4MiB", "16MiB"};
  std::vector<int> in_flight{4, 16, 32}, sweep_threads;
  std::vector<std::string> states{"warm", "cold"}, readers{"pread", "buffered", "io_uring"}, verify{"full", "off"};
  std::string python = "python3";
  bool sweep = true, peers = false, json = false;
};

/// One way to read the same bytes, measured n times.
struct BenchSeries {
  std::string what;       ///< "floor: pread(2)", "load by io_uring"
  std::string state;      ///< "warm", "cold"
  std::string verify;     ///< "full", "off", "" where there is nothing to verify
  bool is_floor = false;  ///< of several in one state the fastest counts
  uint64_t bytes = 0;
  std::function<double()> run;  ///< seconds
  std::vector<double> seconds = {};
};

/// Measures all series in turn, n rounds, so that a noisy minute hits each; a round before that is not counted.
void measure_in_turn(std::vector<BenchSeries>& series, int n, const std::stop_token& stop);

struct SweepPoint {
  std::string reader, state;
  ReadPattern pattern;
  Spread seconds;
};

struct BytesLine {
  std::string what, state;
  std::vector<Line::Point> points;  ///< bytes, median seconds
};

struct BenchLoadReport {
  std::string model, file_system, fio, note;
  std::string device;  ///< "2 x NVIDIA H200"; "" where loads end in host memory
  int tp = 0, n = 0;
  int threads = 0;  ///< 0: as each load chooses
  uint64_t sweep_bytes = 0;
  std::vector<BenchSeries> loads;
  std::vector<SweepPoint> sweep;
  std::vector<BytesLine> lines;
  std::vector<Phase> phases;  ///< of one more verified load into GPUs, since it was called
};

/// Loads into GPUs: what there is to report of them.
BenchLoadReport bench_load_gpu(Context& context, const BenchLoadOptions& options);

nlohmann::ordered_json to_json(const BenchLoadReport& report);
/// Tables for people, and for docs/performance.md.
std::string to_markdown(const BenchLoadReport& report);

}  // namespace firstlight::cli
