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
  std::string model;
  int tp = 0, n = 5, threads = 0;
  std::string most_bytes = "1GiB";  ///< of the sweep and of time against bytes; whole loads take all
  std::vector<std::string> pieces{"1MiB", "4MiB", "16MiB"};
  std::vector<int> in_flight{4, 16, 32}, sweep_threads;
  bool sweep = true, json = false;
};

/// One way to read the same bytes, measured n times.
struct BenchSeries {
  std::string what;       ///< "floor: pread(2)", "load by io_uring"
  std::string state;      ///< "warm", "cold"
  std::string verify;     ///< "full", "off", "" where there is nothing to verify
  bool is_floor = false;  ///< of several in one state the best counts: keep_best_floors()
  uint64_t bytes = 0;
  std::function<double()> run;  ///< seconds
  std::vector<double> seconds = {};
};

/// Measures all series in turn, n rounds, so that a noisy minute hits each; a round before that is not counted.
void measure_in_turn(std::vector<BenchSeries>& series, int n, const std::stop_token& stop);

/// Of the floors of each state keeps the one with the least median: a floor is what nothing beats but noise.
void keep_best_floors(std::vector<BenchSeries>& series);

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
  int tp = 0, n = 0, threads = 0;
  uint64_t sweep_bytes = 0;
  std::vector<BenchSeries> loads;
  std::vector<SweepPoint> sweep;
  std::vector<BytesLine> lines;
};

nlohmann::ordered_json to_json(const BenchLoadReport& report);
/// Tables for people, and for docs/performance.md.
std::string to_markdown(const BenchLoadReport& report);

}  // namespace firstlight::cli
