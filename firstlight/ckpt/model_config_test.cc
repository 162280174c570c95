// SPDX-License-Identifier: Apache-2.0
// Golden values: tools/make_source_testdata.py, by transformers 5.
#include "firstlight/ckpt/model_config.h"

#include <nlohmann/json.hpp>

#include "firstlight/ckpt/gguf_config.h"
#include "firstlight/ckpt/source_test_util.h"

namespace firstlight {
namespace {

using nlohmann::json;
using testing_util::expect_error;

const json& golden() {
  static const json data = json::parse(read_text(FIRSTLIGHT_TESTDATA "/source/configs.json"));
  return data;
}

TEST(ModelConfig, IsReadAsTransformersReadsIt) {
  ASSERT_GE(golden()["cases"].size(), 12u);
  for (const json& c : golden()["cases"]) {
    SCOPED_TRACE(c["name"].get<std::string>());
    const json& e = c["expect"];
    const ModelConfig m = parse_hf_config(c["config"].get<std::string>());
    EXPECT_EQ(to_string(m.architecture), e["model_type"].get<std::string>());
    EXPECT_EQ(m.n_layers, e["n_layers"]);
    EXPECT_EQ(m.dim, e["dim"]);
    EXPECT_EQ(m.hidden_dim, e["hidden_dim"]);
    EXPECT_EQ(m.n_heads, e["n_heads"]);
    EXPECT_EQ(m.n_kv_heads, e["n_kv_heads"]);
    EXPECT_EQ(m.head_dim, e["head_dim"]);
    EXPECT_EQ(m.vocab_size, e["vocab_size"]);
    EXPECT_EQ(m.max_context, e["max_context"]);
    EXPECT_EQ(m.norm_eps, e["norm_eps"]);
    EXPECT_EQ(m.rope_theta, e["rope_theta"]);
    EXPECT_EQ(m.tied_embeddings, e["tied"]);
    EXPECT_EQ(m.o_bias, e["attention_bias"]);
    EXPECT_EQ(m.qkv_bias, m.architecture == Architecture::qwen2 || e["attention_bias"].get<bool>());
    EXPECT_EQ(m.mlp_bias, e["mlp_bias"]);
    EXPECT_EQ(m.qk_norm, m.architecture == Architecture::qwen3);
    EXPECT_EQ(m.eos_token_ids, e["eos"].get<std::vector<int>>());
    EXPECT_EQ(m.bos_token_id ? json(*m.bos_token_id) : json(), e["bos"]);
    EXPECT_EQ(to_string(m.dtype), e["dtype"].get<std::string>());
  }
}

TEST(ModelConfig, InverseFrequenciesAreTransformers) {
  for (const json& c : golden()["cases"]) {
    SCOPED_TRACE(c["name"].get<std::string>());
    const auto got = rope_inverse_frequencies(parse_hf_config(c["config"].get<std::string>()));
    ASSERT_EQ(got.size(), c["frequencies"].size());
    for (size_t i = 0; i < got.size(); ++i) {  // transformers computes in f32
      const double expected = c["frequencies"][i];
      EXPECT_NEAR(got[i], expected, 2e-6 * expected) << i;
    }
  }
}

TEST(ModelConfig, Llama3ScalingIsRecoveredFromAGgufsFactors) {
  for (const json& c : golden()["rope_factors"]) {
    const auto factors = c["factors"].get<std::vector<float>>();
    const int head_dim = c["head_dim"];
    if (c["factor"] == 16.0) {
      expect_error(ErrorKind::unsupported, "none of the known",
                   [&] { recover_rope_scaling(factors, 500000, head_dim); });
      continue;
    }
    const RopeScaling scaling = recover_rope_scaling(factors, 500000, head_dim);
    EXPECT_EQ(scaling, (RopeScaling{RopeScaling::Kind::llama3, c["factor"], 1, 4, 8192}));
    auto other = factors;
    other[other.size() / 2 + 3] *= 1.001f;
    expect_error(ErrorKind::unsupported, "none of the known", [&] { recover_rope_scaling(other, 500000, head_dim); });
    expect_error(ErrorKind::unsupported, "none of the known", [&] { recover_rope_scaling(factors, 10000, head_dim); });
    expect_error(ErrorKind::unsupported, "none of the known",
                 [&] { recover_rope_scaling(factors, 500000, head_dim * 2); });
  }
  EXPECT_EQ(recover_rope_scaling(std::vector<float>(32, 1.0f), 10000, 64), RopeScaling{});
}

/// A small Llama with these fields over it.
std::string llama(std::string_view fields) {
  json c = {{"architectures", {"LlamaForCausalLM"}},
            {"model_type", "llama"},
            {"hidden_size", 64},
            {"intermediate_size", 128},
            {"num_hidden_layers", 2},
            {"num_attention_heads", 4},
            {"num_key_value_heads", 2},
            {"vocab_size", 100},
            {"max_position_embeddings", 8192}};
  c.update(json::parse(fields));
  return c.dump();
}
void refuse(ErrorKind kind, std::string_view fields, std::string_view part) {
  SCOPED_TRACE(fields);
  expect_error(kind, part, [&] { parse_hf_config(llama(fields)); });
}

TEST(ModelConfig, RefusesByNameWhatItDoesNotDo) {
  constexpr auto kind = ErrorKind::unsupported;
  refuse(kind, R"({"architectures":["GPT2LMHeadModel"]})", "GPT2LMHeadModel");
  refuse(kind, R"({"architectures":["LlamaModel"]})", "LlamaModel");
  refuse(kind, R"({"model_type":"mixtral"})", "mixtral");
  refuse(kind, R"({"hidden_act":"gelu"})", "gelu");
  refuse(kind, R"({"quantization_config":{"quant_method":"fp8"}})", "\"fp8\"");
  refuse(kind, R"({"rope_scaling":{"type":"yarn","factor":4.0}})", "'yarn'");
  refuse(kind, R"({"rope_scaling":{"rope_type":"dynamic","factor":4.0}})", "'dynamic'");
  refuse(kind, R"({"rope_parameters":{"rope_type":"longrope"}})", "'longrope'");
  refuse(kind, R"({"rope_parameters":{"full_attention":{"rope_type":"default"}}})", "full_attention");
  refuse(kind, R"({"partial_rotary_factor":0.5})", "partial_rotary_factor");
  refuse(kind, R"({"torch_dtype":"float8_e4m3fn"})", "float8_e4m3fn");
}

TEST(ModelConfig, RefusesASlidingWindowOnlyWhereItHidesSomething) {
  constexpr std::string_view mistral = R"("architectures":["MistralForCausalLM"],"model_type":"mistral")",
                             qwen2 = R"("architectures":["Qwen2ForCausalLM"],"model_type":"qwen2")";
  const auto with = [](std::string_view family, std::string_view more) {
    return "{" + std::string(family) + "," + std::string(more) + "}";
  };
  refuse(ErrorKind::unsupported, with(mistral, R"("sliding_window":4096)"), "sliding window of 4096");
  refuse(ErrorKind::unsupported, with(mistral, R"("x":1)"), "sliding window of 4096");  // the class's default
  EXPECT_NO_THROW(parse_hf_config(llama(with(mistral, R"("sliding_window":null)"))));
  EXPECT_NO_THROW(parse_hf_config(llama(with(mistral, R"("sliding_window":8192)"))));
  EXPECT_NO_THROW(parse_hf_config(llama(with(qwen2, R"("sliding_window":100)"))));
  EXPECT_NO_THROW(
      parse_hf_config(llama(with(qwen2, R"("sliding_window":100,"use_sliding_window":true,"max_window_layers":2)"))));
  refuse(ErrorKind::unsupported, with(qwen2, R"("sliding_window":100,"use_sliding_window":true,"max_window_layers":1)"),
         "sliding window of 100");
  refuse(ErrorKind::unsupported,
         with(qwen2, R"("sliding_window":100,"layer_types":["full_attention","sliding_attention"])"), "sliding window");
  refuse(ErrorKind::unsupported, with(qwen2, R"("layer_types":["linear_attention"])"), "linear_attention");
}

TEST(ModelConfig, RefusesNonsense) {
  constexpr auto kind = ErrorKind::bad_input;
  expect_error(kind, "not JSON", [] { parse_hf_config("{"); });
  expect_error(kind, "not an object", [] { parse_hf_config("[]"); });
  expect_error(kind, "neither", [] { parse_hf_config("{}"); });
  expect_error(kind, "duplicate key 'a'", [] { parse_hf_config(R"({"a":1,"a":2})"); });
  expect_error(kind, "nested deeper", [] { parse_hf_config(std::string(10000, '[')); });
  refuse(kind, R"({"num_attention_heads":0})", "num_attention_heads 0");
  refuse(kind, R"({"num_attention_heads":3})", "not a multiple");
  refuse(kind, R"({"num_key_value_heads":3})", "not a multiple");
  refuse(kind, R"({"num_key_value_heads":0})", "KV heads is 0");
  refuse(kind, R"({"num_key_value_heads":8})", "KV heads is 8");
  refuse(kind, R"({"head_dim":15})", "odd");
  refuse(kind, R"({"hidden_size":-64})", "hidden_size is -64");
  refuse(kind, R"({"hidden_size":64.0})", "expected a whole number");
  refuse(kind, R"({"hidden_size":"64"})", "expected a whole number");
  refuse(kind, R"({"hidden_size":1e9})", "expected a whole number");
  refuse(kind, R"({"num_hidden_layers":99999999999999999999})", "whole number");
  refuse(kind, R"({"num_hidden_layers":18446744073709551615})", "31 bits");
  refuse(kind, R"({"num_hidden_layers":5000})", "layers is 5000");
  refuse(kind, R"({"vocab_size":2000000000})", "vocab_size");
  refuse(kind, R"({"rms_norm_eps":-1})", "rms_norm_eps");
  refuse(kind, R"({"rope_theta":0})", "rope_theta");
  refuse(kind, R"({"rope_theta":"x"})", "rope_theta");
  refuse(kind, R"({"tie_word_embeddings":1})", "true or false");
  refuse(kind, R"({"eos_token_id":[1,"x"]})", "eos_token_id");
  refuse(kind, R"({"eos_token_id":-1})", "eos_token_id is -1");
  refuse(kind, R"({"rope_scaling":{"type":"linear"}})", "no factor");
  refuse(kind, R"({"rope_scaling":{"type":"linear","factor":0}})", "factor is 0");
  refuse(kind, R"({"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":4.0,"high_freq_factor":4.0}})",
         "not above");
}

TEST(ModelConfig, TwoSpellingsOfRopeMustSayTheSame) {
  const std::string same = R"({"rope_theta":10000.0,"rope_scaling":{"type":"linear","factor":2.0},)"
                           R"("rope_parameters":{"rope_type":"linear","factor":2.0,"rope_theta":10000.0}})";
  EXPECT_EQ(parse_hf_config(llama(same)).rope_scaling.factor, 2.0);
  const auto contradict = [](std::string_view fields) {
    refuse(ErrorKind::bad_input, fields, "contradict each other");
  };
  contradict(
      R"({"rope_scaling":{"type":"linear","factor":2.0},"rope_parameters":{"rope_type":"linear","factor":4.0}})");
  contradict(R"({"rope_scaling":{"type":"linear","factor":2.0},"rope_parameters":{"rope_type":"default"}})");
  refuse(ErrorKind::bad_input, R"({"rope_theta":10000.0,"rope_parameters":{"rope_type":"default","rope_theta":500.0}})",
         "rope_theta is 10000");
  refuse(ErrorKind::bad_input,
         R"({"rope_theta":10000.0,"rope_scaling":{"type":"linear","factor":2.0},)"
         R"("rope_parameters":{"type":"linear","factor":2.0,"rope_theta":500000.0}})",
         "rope_theta is 10000");
  EXPECT_NO_THROW(parse_hf_config(llama(R"({"rope_scaling":{},"rope_parameters":{"rope_type":"default"}})")));
}

TEST(ModelConfig, TokensThatTheVocabularyDoesNotHaveAreRefused) {
  constexpr auto kind = ErrorKind::bad_input;
  refuse(kind, R"({"vocab_size":100,"eos_token_id":100})", "eos_token_id is 100");
  refuse(kind, R"({"vocab_size":100,"eos_token_id":[2,4000]})", "eos_token_id is 4000");
  refuse(kind, R"({"vocab_size":100,"bos_token_id":100})", "bos_token_id is 100");
  const ModelConfig c = parse_hf_config(llama(R"({"vocab_size":100,"eos_token_id":99})"));
  EXPECT_EQ(c.eos_token_ids, std::vector<int>{99});
  expect_error(kind, "generation_config.json: eos_token_id is 100",
               [&] { stop_token_ids(c, R"({"eos_token_id":100})"); });
}

TEST(ModelConfig, StopTokensAreTheUnionOfBothFiles) {
  ModelConfig c;
  c.vocab_size = 10;
  c.eos_token_ids = {9, 2};
  EXPECT_EQ(stop_token_ids(c, ""), (std::vector<int>{2, 9}));
  EXPECT_EQ(stop_token_ids(c, R"({"eos_token_id":[5,2]})"), (std::vector<int>{2, 5, 9}));
  EXPECT_EQ(stop_token_ids(c, R"({"eos_token_id":7})"), (std::vector<int>{2, 7, 9}));
  EXPECT_EQ(stop_token_ids(c, R"({"eos_token_id":null})"), (std::vector<int>{2, 9}));
  expect_error(ErrorKind::bad_input, "generation_config.json", [&] { stop_token_ids(c, "x"); });
}

}  // namespace
}  // namespace firstlight
