// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/bench_kv.h"

#include <gmock/gmock.h>

namespace firstlight::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

nlohmann::ordered_json kind(const char* name, double mean, double p99, double same, double perplexity) {
  return {{"kv", name},
          {"bytes", 68.0},
          {"perplexity_change", perplexity},
          {"mean_kld", mean},
          {"p99_kld", p99},
          {"p999_kld", .1},
          {"same_top1", same},
          {"quarter_kld", {.002, .003, .004, .003}}};
}

TEST(BenchKv, AGateNamesEachBoundThatIsMissed) {
  const KvGate gate = *kv_gate(KvKind::tq4);
  EXPECT_THAT(missed(gate, kind("tq4", .0045, .05, .96, .006)), IsEmpty()) << "bounds belong to it";
  EXPECT_THAT(missed(gate, kind("tq4", .0046, .06, .95, .007)),
              ElementsAre(HasSubstr("mean KLD 0.0046 (at most 0.0045)"), HasSubstr("p99"), HasSubstr("perplexity"),
                          HasSubstr("same top-1 0.95 (at least 0.96)")));
  EXPECT_THAT(missed(*kv_gate(KvKind::tq8), kind("tq8", 9e-5, 9, .996, 9)), IsEmpty()) << "no bound, nothing missed";
  EXPECT_FALSE(kv_gate(KvKind::bf16));
  EXPECT_FALSE(kv_gate(KvKind::k3v2));
}

TEST(BenchKv, TheReportSetsTimesBesideTheFirstKindsAndSaysWhatIsMissed) {
  BenchKvReport report;
  report.model = "m";
  report.device = "cuda:0";
  report.text = "'t.txt'";
  report.config.n_layers = 2, report.config.n_heads = 8, report.config.n_kv_heads = 4, report.config.head_dim = 128;
  report.config.dim = 1024, report.config.hidden_dim = 64, report.config.max_context = 32768;
  report.kinds = {KvKind::bf16, KvKind::tq4};
  report.quality = {{"positions", 10}, {"window", 64}, {"skip", 4}, {"head_dim", 128}};
  (*report.quality)["kinds"] = {kind("f32", 0, 0, 1, 0), kind("tq4+centred", .02, .01, .97, .001)};
  report.speed.steps = {{KvKind::bf16, 2, 512, Spread({.004, .005, .003})},
                        {KvKind::tq4, 2, 512, Spread({.002})},
                        {KvKind::tq4, 4, 512, Spread({.002})}};
  report.speed.prompts = {{KvKind::tq4, 2, 0, 512, .25}};
  report.speed.left_out = {"bf16, 4 sequences: no room"};
  const nlohmann::ordered_json json = to_json(report);
  EXPECT_EQ(json["steps"][1]["beside_first"], 2.0);
  EXPECT_EQ(json["steps"][1]["tokens_per_s"], 1000.0);
  EXPECT_EQ(json["steps"][2]["beside_first"], 0.0) << "bf16 was left out there";
  EXPECT_EQ(json["prompts"][0]["tokens_per_s"], 4096.0);
  EXPECT_EQ(json["quality"]["kinds"][1]["gate"], "missed: mean KLD 0.02 (at most 0.0045)");
  EXPECT_FALSE(json["quality"]["kinds"][0].contains("gate"));
  // 2 layers x 4 heads x (key + value of 128 in bf16), and 66 bytes a vector with four exact pages of 512.
  EXPECT_EQ(json["room"][0]["bytes_a_token"], 2 * 4 * 2 * 256.0);
  EXPECT_EQ(json["room"][1]["bytes_a_token"], 2 * 4 * 2 * (66 + 256 * 4 / 512.0));
  const std::string text = to_markdown(report);
  EXPECT_THAT(text, HasSubstr("| tq4 | 2 x 512 | 2.000 (2.000–2.000) | 1000.0 | 2.00 |"));
  EXPECT_THAT(text, HasSubstr("| tq4 | 4 x 512 | 2.000 (2.000–2.000) | 2000.0 |  |"));
  EXPECT_THAT(text, HasSubstr("Left out: bf16, 4 sequences: no room"));
  EXPECT_THAT(text, HasSubstr("missed: mean KLD 0.02 (at most 0.0045)"));
  EXPECT_THAT(text, Not(HasSubstr("| f32 |")));
}

}  // namespace
}  // namespace firstlight::cli
