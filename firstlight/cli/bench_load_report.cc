// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "firstlight/base/str.h"
#include "firstlight/cli/bench_load.h"
#include "firstlight/cli/session.h"

namespace firstlight::cli {

namespace {

std::string fixed_text(double value, int digits) {
  std::array<char, 48> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}

double gb_per_s(uint64_t bytes, double seconds) { return static_cast<double>(bytes) / seconds / 1e9; }

/// Of the lowest floor in the same state: the median of the rounds' ratios, as a noisy minute hits both. 0 where there
/// is none.
double share_of_floor(const BenchLoadReport& report, const BenchSeries& series) {
  double lowest = 0;
  for (const BenchSeries& floor : report.loads) {
    if (!floor.is_floor || floor.state != series.state) continue;
    std::vector<double> ratios;
    for (size_t i = 0; i < std::min(floor.seconds.size(), series.seconds.size()); ++i) {
      ratios.push_back(floor.seconds[i] / series.seconds[i]);
    }
    if (ratios.empty()) continue;
    const double share = Spread(ratios).median;
    lowest = lowest == 0 ? share : std::min(lowest, share);
  }
  return lowest;
}

/// "1.23 (1.10–1.30)": the most seconds are the least rate.
std::string rate_text(uint64_t bytes, const Spread& seconds) {
  return str(fixed_text(gb_per_s(bytes, seconds.median), 2), " (", fixed_text(gb_per_s(bytes, seconds.most), 2), "–",
             fixed_text(gb_per_s(bytes, seconds.least), 2), ")");
}

}  // namespace

nlohmann::ordered_json to_json(const BenchLoadReport& report) {
  using Json = nlohmann::ordered_json;
  Json loads = Json::array(), sweep = Json::array(), lines = Json::array();
  for (const BenchSeries& series : report.loads) {
    const Spread spread(series.seconds);
    loads.push_back({{"what", series.what},
                     {"state", series.state},
                     {"verify", series.verify},
                     {"is_floor", series.is_floor},
                     {"bytes", series.bytes},
                     {"median_s", spread.median},
                     {"gb_per_s", gb_per_s(series.bytes, spread.median)},
                     {"share_of_floor", share_of_floor(report, series)},
                     {"seconds", series.seconds}});
  }
  for (const SweepPoint& point : report.sweep) {
    sweep.push_back({{"reader", point.reader},
                     {"state", point.state},
                     {"piece_bytes", point.pattern.piece},
                     {"in_flight", point.pattern.in_flight},
                     {"threads", point.pattern.threads},
                     {"gb_per_s", gb_per_s(report.sweep_bytes, point.seconds.median)},
                     {"min_gb_per_s", gb_per_s(report.sweep_bytes, point.seconds.most)},
                     {"max_gb_per_s", gb_per_s(report.sweep_bytes, point.seconds.least)}});
  }
  for (const BytesLine& line : report.lines) {
    const Line fit(line.points);
    Json points = Json::array();
    for (const Line::Point& point : line.points) points.push_back({point.x, point.y});
    lines.push_back({{"what", line.what},
                     {"state", line.state},
                     {"gb_per_s", 1e-9 / fit.slope},
                     {"intercept_s", fit.intercept},
                     {"bytes_and_seconds", points}});
  }
  return {{"model", report.model},
          {"device", report.device.empty() ? "cpu" : report.device},
          {"tp", report.tp},
          {"threads", report.threads},
          {"n", report.n},
          {"file_system", report.file_system},
          {"fio", report.fio},
          {"note", report.note},
          {"loads", loads},
          {"sweep_bytes", report.sweep_bytes},
          {"sweep", sweep},
          {"time_against_bytes", lines},
          {"phases", to_json(report.phases)}};
}

std::string to_markdown(const BenchLoadReport& report) {
  const bool to_gpus = !report.device.empty();
  std::string text = str("`firstlight bench load`, tp ", report.tp, ", ",
                         report.threads > 0 ? str(report.threads, " threads") : "threads as the load chooses", ", ",
                         to_gpus ? report.device : report.file_system, "; ", report.n,
                         " alternating rounds, median (least–most).\n\n");
  if (!report.note.empty()) text += report.note + "\n\n";
  text += "| what | page cache | verified | GB/s | share of the floor |\n|---|---|---|---|---|\n";
  for (const BenchSeries& series : report.loads) {
    const double share = share_of_floor(report, series);
    text += str("| ", series.what, " | ", series.state, " | ", series.verify.empty() ? "–" : series.verify, " | ",
                rate_text(series.bytes, Spread(series.seconds)), " | ",
                series.is_floor || share == 0 ? "–" : fixed_text(100 * share, 1) + " %", " |\n");
  }
  if (!report.sweep.empty()) {
    text += str(to_gpus ? "\nLoads of " : "\nReaders alone, ", human_bytes(static_cast<double>(report.sweep_bytes)),
                to_gpus ? " to GPUs, verified (in flight: slots of the ring, a GPU's threads)"
                        : " into memory that was touched before",
                ":\n\n| reader | page cache | piece | in flight | threads | GB/s "
                "|\n|---|---|---|---|---|---|\n");
  }
  for (const SweepPoint& point : report.sweep) {
    text += str("| ", point.reader, " | ", point.state, " | ", point.pattern.piece >> 10, " KiB | ",
                point.pattern.in_flight, " | ", point.pattern.threads, " | ",
                rate_text(report.sweep_bytes, point.seconds), " |\n");
  }
  if (!report.lines.empty())
    text +=
        "\nTime against bytes, a line through the medians:\n\n| what | page cache | GB/s | intercept "
        "|\n|---|---|---|---|\n";
  for (const BytesLine& line : report.lines) {
    const Line fit(line.points);
    text += str("| ", line.what, " | ", line.state, " | ", fixed_text(1e-9 / fit.slope, 2), " | ",
                fixed_text(1e3 * fit.intercept, 1), " ms |\n");
  }
  return text + "\n" + report.fio + "\n";
}

}  // namespace firstlight::cli
