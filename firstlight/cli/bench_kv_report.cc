// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstdio>

#include "firstlight/base/str.h"
#include "firstlight/cli/bench_kv.h"

namespace firstlight::cli {

namespace {

using Json = nlohmann::ordered_json;

template <class... Values>
std::string text(const char* format, Values... values) {
  std::array<char, 160> out{};
  std::snprintf(out.data(), out.size(), format, values...);
  return out.data();
}

std::optional<KvKind> kind_of(const Json& kind) {
  const std::string name = kind.at("kv");
  return kv_kind_from(name.substr(0, name.find('+')));
}

/// As the gate of a kind says: "within", what is not, or "" where there is none.
std::string gate_text(const Json& kind) {
  const auto known = kind_of(kind);
  const auto gate = known ? kv_gate(*known) : std::nullopt;
  if (!gate) return "";
  std::string all;
  for (const std::string& one : missed(*gate, kind)) all += str(all.empty() ? "missed: " : ", ", one);
  return all.empty() ? "within" : all;
}

void add_quality(std::string& out, const BenchKvReport& report) {
  const Json& quality = *report.quality;
  out += text("%ld positions in windows of %ld, from position %ld on, of ", quality.at("positions").get<long>(),
              quality.at("window").get<long>(), quality.at("skip").get<long>()) +
         report.text + "; beside an f32 cache.\n\n";
  out +=
      "| kv | bytes of a key and a value | perplexity | mean KLD | p99 | p99.9 | same top-1 | mean KLD by quarter of "
      "the window | last to first | SmolLM2's gate |\n|---|---|---|---|---|---|---|---|---|---|\n";
  for (const Json& kind : quality.at("kinds")) {
    const Json& quarters = kind.at("quarter_kld");
    if (kind.at("kv") == "f32") continue;
    out += str("| ", kind.at("kv").get<std::string>()) +
           text(" | %.0f | %+.2f %% | %.2e | %.2e | %.2e | %.2f %% |", kind.at("bytes").get<double>(),
                100 * kind.at("perplexity_change").get<double>(), kind.at("mean_kld").get<double>(),
                kind.at("p99_kld").get<double>(), kind.at("p999_kld").get<double>(),
                100 * kind.at("same_top1").get<double>());
    for (const Json& quarter : quarters) out += text(" %.2e", quarter.get<double>());
    out += text(" | %.2f | ", quarters[3].get<double>() / std::max(quarters[0].get<double>(), 1e-30)) +
           gate_text(kind) + " |\n";
  }
}

const KvStep* find(const KvSpeed& speed, KvKind kind, int batch, int64_t context) {
  for (const KvStep& step : speed.steps) {
    if (step.kind == kind && step.batch == batch && step.context == context) return &step;
  }
  return nullptr;
}

/// Beside the first kind's; 0 where that did not fit.
double ratio(const BenchKvReport& report, const KvStep& step) {
  const KvStep* first = find(report.speed, report.kinds.front(), step.batch, step.context);
  return first ? first->seconds.median / step.seconds.median : 0;
}

double prompt_rate(const KvPrompt& prompt) {
  return prompt.batch * static_cast<double>(prompt.end - prompt.begin) / prompt.seconds;
}

void add_speed(std::string& out, const BenchKvReport& report) {
  const std::string first(to_string(report.kinds.front()));
  out += str("| kv | sequences x context | ms a step (least–most) | tokens/s | beside ", first,
             " |\n|---|---|---|---|---|\n");
  for (const KvStep& step : report.speed.steps) {
    const double beside = ratio(report, step);
    out += str("| ", to_string(step.kind), " | ", step.batch, " x ", step.context) +
           text(" | %.3f (%.3f–%.3f) | %.1f | ", 1e3 * step.seconds.median, 1e3 * step.seconds.least,
                1e3 * step.seconds.most, step.batch / step.seconds.median) +
           (beside > 0 ? text("%.2f", beside) : "") + " |\n";
  }
  out += "\n| kv | prompts, tokens | tokens/s |\n|---|---|---|\n";
  for (const KvPrompt& prompt : report.speed.prompts) {
    out += str("| ", to_string(prompt.kind), " | ", prompt.batch, " x ", prompt.begin, " to ", prompt.end) +
           text(" | %.0f |\n", prompt_rate(prompt));
  }
  for (const std::string& line : report.speed.left_out) out += str("\nLeft out: ", line);
}

int64_t longest(const BenchKvReport& report) {
  int64_t tokens = 32768;
  for (const KvStep& step : report.speed.steps) tokens = std::max(tokens, step.context);
  return std::min<int64_t>(tokens, report.config.max_context);
}

void add_room(std::string& out, const BenchKvReport& report) {
  const int64_t n = longest(report);
  const double first = kv_bytes_a_token(report.config, report.tp, report.kinds.front(), n);
  out += str("| kv | bytes a token, in a sequence of ", n, " | tokens in 1 GiB | beside ",
             to_string(report.kinds.front()), " |\n|---|---|---|---|\n");
  for (const KvKind kind : report.kinds) {
    const double bytes = kv_bytes_a_token(report.config, report.tp, kind, n);
    out += str("| ", to_string(kind)) + text(" | %.0f | %.0f | %.2f |\n", bytes, (1 << 30) / bytes, first / bytes);
  }
}

}  // namespace

std::optional<KvGate> kv_gate(KvKind kind) {
  switch (kind) {
    case KvKind::tq8:
      return KvGate{1e-4, 0, .995, 0};
    case KvKind::k8v4:
      return KvGate{9e-4, 0, .98, 0};
    case KvKind::tq4:
      return KvGate{.0045, .05, .96, .006};
    case KvKind::k4v3:
      return KvGate{.008, 0, .95, 0};
    case KvKind::tq3:
      return KvGate{.021, .2, .92, .025};
    default:
      return std::nullopt;
  }
}

std::vector<std::string> missed(const KvGate& gate, const Json& kind) {
  std::vector<std::string> out;
  const auto at_most = [&](const char* name, const char* key, double bound) {
    const double found = kind.at(key);
    if (bound > 0 && found > bound) out.push_back(text("%s %.2g (at most %.2g)", name, found, bound));
  };
  at_most("mean KLD", "mean_kld", gate.mean_kld);
  at_most("p99", "p99_kld", gate.p99_kld);
  at_most("perplexity", "perplexity_change", gate.perplexity_change);
  const double same = kind.at("same_top1");
  if (same < gate.same_top1) out.push_back(text("same top-1 %.4g (at least %.4g)", same, gate.same_top1));
  return out;
}

double kv_bytes_a_token(const ModelConfig& config, int tp, KvKind kind, int64_t n_tokens) {
  const int64_t pages = (n_tokens + kPageTokens - 1) / kPageTokens;
  uint64_t bytes = static_cast<uint64_t>(pages) * kv_page_bytes(config, tp, kind);
  // What a sequence keeps beside its codes between two passes: the first page and the last ones.
  if (is_compressed(kind))
    bytes += static_cast<uint64_t>(std::min(pages, kExactTail + 1)) * kv_page_bytes(config, tp, KvKind::bf16);
  return static_cast<double>(bytes) / static_cast<double>(n_tokens);
}

std::string to_markdown(const BenchKvReport& report) {
  std::string out = str("KV caches of '", report.model, "', tp ", report.tp, ", ", report.device, "\n\n");
  if (report.quality) add_quality(out, report), out += "\n";
  if (!report.speed.steps.empty()) add_speed(out, report), out += "\n";
  add_room(out, report);
  return out;
}

Json to_json(const BenchKvReport& report) {
  Json out{{"model", report.model}, {"device", report.device}, {"tp", report.tp}};
  if (report.quality) {
    out["text"] = report.text;
    out["quality"] = *report.quality;
    for (Json& kind : out["quality"]["kinds"]) {
      if (const std::string gate = gate_text(kind); !gate.empty()) kind["gate"] = gate;
    }
  }
  Json steps = Json::array(), prompts = Json::array(), room = Json::array();
  for (const KvStep& step : report.speed.steps) {
    steps.push_back({{"kv", to_string(step.kind)},
                     {"sequences", step.batch},
                     {"context", step.context},
                     {"median_s", step.seconds.median},
                     {"least_s", step.seconds.least},
                     {"most_s", step.seconds.most},
                     {"tokens_per_s", step.batch / step.seconds.median},
                     {"beside_first", ratio(report, step)}});
  }
  for (const KvPrompt& prompt : report.speed.prompts) {
    prompts.push_back({{"kv", to_string(prompt.kind)},
                       {"sequences", prompt.batch},
                       {"begin", prompt.begin},
                       {"end", prompt.end},
                       {"seconds", prompt.seconds},
                       {"tokens_per_s", prompt_rate(prompt)}});
  }
  for (const KvKind kind : report.kinds) {
    room.push_back({{"kv", to_string(kind)},
                    {"context", longest(report)},
                    {"bytes_a_token", kv_bytes_a_token(report.config, report.tp, kind, longest(report))}});
  }
  out["steps"] = steps;
  out["prompts"] = prompts;
  out["left_out"] = report.speed.left_out;
  out["room"] = room;
  return out;
}

}  // namespace firstlight::cli
