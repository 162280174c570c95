// SPDX-License-Identifier: Apache-2.0
// What a start looked like, for people and for programs.
#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "firstlight/base/str.h"
#include "firstlight/cli/session.h"

namespace firstlight::cli {

namespace {

double gb_per_s(uint64_t bytes, double seconds) { return seconds > 0 ? static_cast<double>(bytes) / seconds / 1e9 : 0; }

std::string fixed(double value, int digits) {
  std::array<char, 48> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}

/// Columns a UTF-8 text takes: its bytes less the continuation bytes.
size_t width(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

nlohmann::ordered_json to_json(const LoadReport& report) {
  nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
  for (const RankReport& rank : report.ranks) {
    ranks.push_back({{"rank", rank.rank},
                     {"device", to_string(rank.device)},
                     {"bytes", rank.bytes},
                     {"seconds", rank.seconds},
                     {"gb_per_s", gb_per_s(rank.bytes, rank.seconds)},
                     {"leaves_checked", rank.leaves_checked}});
  }
  return {{"bytes", report.bytes},
          {"seconds", report.seconds},
          {"gb_per_s", gb_per_s(report.bytes, report.seconds)},
          {"reader", report.reader},
          {"why", report.why},
          {"verify", report.verify},
          {"verify_cpu_s", report.verify_cpu_seconds},
          {"verify_device_s", report.verify_device_seconds},
          {"ranks", ranks}};
}

nlohmann::ordered_json to_json(const std::vector<Phase>& phases) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Phase& phase : phases)
    list.push_back({{"name", phase.name}, {"start_s", phase.start_s}, {"end_s", phase.end_s}});
  return list;
}

std::string describe(const LoadReport& report) {
  std::string text = str("loaded ", human_bytes(static_cast<double>(report.bytes)), " in ",
                         human_seconds(report.seconds), ": ", fixed(gb_per_s(report.bytes, report.seconds), 2),
                         " GB/s by ", report.reader, " (", report.why, "); verification: ", report.verify);
  if (report.verify_cpu_seconds > 0) text += str(" (", human_seconds(report.verify_cpu_seconds), " of CPU time)");
  if (report.verify_device_seconds > 0) {
    text += str(" (in device memory, ", human_seconds(report.verify_device_seconds), " beside the reading)");
  }
  if (report.ranks.size() > 1) {
    for (const RankReport& rank : report.ranks) {
      text += str("\n  rank ", rank.rank, ": ", human_bytes(static_cast<double>(rank.bytes)), " in ",
                  human_seconds(rank.seconds), ", ", rank.leaves_checked, " leaves checked");
    }
  }
  return text;
}

nlohmann::ordered_json to_json(const KvUse& use) {
  return {{"kind", to_string(use.kind)},
          {"bytes", use.bytes},
          {"exact_bytes", use.exact_bytes},
          {"tokens", use.tokens},
          {"bf16_tokens", use.bf16_tokens},
          {"centring", use.centring.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(use.centring)}};
}

std::string describe(const KvUse& use) {
  std::string text = str("KV cache: ", to_string(use.kind), ", ", human_bytes(static_cast<double>(use.bytes)), " for ",
                         use.tokens, " tokens");
  if (!is_compressed(use.kind)) return text;
  return text + str(", ", human_bytes(static_cast<double>(use.exact_bytes)),
                    " of it exact pages (bf16); the same memory holds ", use.bf16_tokens, " tokens in bf16; ",
                    use.centring.empty() ? "not centred" : str("centred by means ", use.centring));
}

std::string draw_timeline(const std::vector<Phase>& phases, double end_s, std::string_view since) {
  constexpr int kWidth = 40;
  size_t name_width = 5;
  for (const Phase& phase : phases) name_width = std::max(name_width, width(phase.name));
  std::string out = str("time line, seconds since ", since, "\n");
  for (const Phase& phase : phases) {
    const auto column = [&](double t) {
      return std::clamp(static_cast<int>(t / std::max(end_s, 1e-9) * kWidth), 0, kWidth);
    };
    const int begin = std::min(column(phase.start_s), kWidth - 1);
    const int end = std::max(begin + 1, column(phase.end_s));
    std::string bar;
    for (int i = 0; i < kWidth; ++i) bar += i >= begin && i < end ? "█" : "·";
    out += str("  ", phase.name, std::string(name_width - width(phase.name), ' '), "  ", fixed(phase.start_s, 3), " – ",
               fixed(phase.end_s, 3), "  ", bar, "\n");
  }
  out.pop_back();
  return out;
}

}  // namespace firstlight::cli
