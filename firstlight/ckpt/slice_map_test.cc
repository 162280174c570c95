// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/slice_map.h"

#include <gmock/gmock.h>

#include <set>

#include "firstlight/base/error.h"

namespace firstlight {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

ModelConfig llama_8b() {
  ModelConfig c;
  c.n_layers = 32;
  c.dim = 4096;
  c.hidden_dim = 14336;
  c.n_heads = 32;
  c.n_kv_heads = 8;
  c.head_dim = 128;
  c.vocab_size = 128256;
  return c;
}

ModelTensor find(const ModelConfig& c, const std::string& name) {
  for (const ModelTensor& tensor : model_tensors(c)) {
    if (tensor.name == name) return tensor;
  }
  throw std::runtime_error("no " + name);
}

std::set<std::string> names(const ModelConfig& c) {
  std::set<std::string> out;
  for (const ModelTensor& tensor : model_tensors(c)) EXPECT_TRUE(out.insert(tensor.name).second) << tensor.name;
  return out;
}

TEST(SliceMap, ALlamaLayerStandsInTheOrderOfItsUse) {
  std::vector<std::string> layer;
  for (const ModelTensor& tensor : model_tensors(llama_8b())) {
    if (tensor.gate == 2) layer.push_back(tensor.name.substr(std::string("model.layers.1.").size()));
  }
  EXPECT_THAT(layer,
              ElementsAre("input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight",
                          "self_attn.v_proj.weight", "self_attn.o_proj.weight", "post_attention_layernorm.weight",
                          "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"));
  const auto all = model_tensors(llama_8b());
  EXPECT_EQ(all.size(), 3u + 9 * 32);
  EXPECT_EQ(all.front().name, "model.embed_tokens.weight");
  EXPECT_EQ(all.front().gate, 0);
  EXPECT_EQ(all.back().name, "lm_head.weight");
  EXPECT_EQ(all.back().gate, 33);
}

TEST(SliceMap, TiedModelsHaveNoHeadAndBiasesAndHeadNormsComeWhereTheConfigSaysSo) {
  ModelConfig c = llama_8b();
  c.tied_embeddings = true;
  EXPECT_THAT(names(c), Not(Contains("lm_head.weight")));
  EXPECT_THAT(names(c), Not(Contains(HasSubstr("bias"))));
  c.qkv_bias = true;
  EXPECT_THAT(names(c), Contains("model.layers.31.self_attn.v_proj.bias"));
  EXPECT_THAT(names(c), Not(Contains(HasSubstr("o_proj.bias"))));
  c.o_bias = c.mlp_bias = c.qk_norm = true;
  for (const char* name : {"self_attn.o_proj.bias", "mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias",
                           "self_attn.q_norm.weight", "self_attn.k_norm.weight"}) {
    EXPECT_THAT(names(c), Contains(std::string("model.layers.0.") + name));
  }
  EXPECT_EQ(find(c, "model.layers.0.self_attn.q_norm.weight").shape, (std::vector<int64_t>{128}));
  EXPECT_EQ(find(c, "model.layers.0.self_attn.o_proj.bias").slice, SliceKind::replicated);
  EXPECT_EQ(find(c, "model.layers.0.mlp.down_proj.bias").slice, SliceKind::replicated);
}

TEST(SliceMap, RowsOfHeadsAndColumnsAreWhatTheRankComputesWith) {
  const ModelConfig c = llama_8b();
  const Slice q = slice_of(c, find(c, "model.layers.0.self_attn.q_proj.weight"), 4, 3);
  EXPECT_EQ(q.row_begin, 3 * 8 * 128);
  EXPECT_EQ(q.row_end, 4 * 8 * 128);
  EXPECT_EQ(q.shape(), (std::vector<int64_t>{1024, 4096}));
  const Slice k = slice_of(c, find(c, "model.layers.0.self_attn.k_proj.weight"), 4, 3);
  EXPECT_EQ(k.row_begin, 3 * 2 * 128);
  EXPECT_EQ(k.row_end, 4 * 2 * 128);
  const Slice o = slice_of(c, find(c, "model.layers.0.self_attn.o_proj.weight"), 4, 3);
  EXPECT_EQ(o.col_begin, q.row_begin) << "o's columns are q's heads";
  EXPECT_EQ(o.col_end, q.row_end);
  EXPECT_EQ(o.shape(), (std::vector<int64_t>{4096, 1024}));
  const Slice up = slice_of(c, find(c, "model.layers.0.mlp.up_proj.weight"), 4, 1);
  const Slice down = slice_of(c, find(c, "model.layers.0.mlp.down_proj.weight"), 4, 1);
  EXPECT_EQ(down.col_begin, up.row_begin) << "down's columns are up's rows";
  EXPECT_EQ(down.col_end, up.row_end);
}

TEST(SliceMap, EveryRanksKvHeadsAreThoseItsQueryHeadsAsk) {
  ModelConfig c = llama_8b();
  for (const int n_kv_heads : {1, 2, 4, 8, 16, 32}) {
    c.n_kv_heads = n_kv_heads;
    const int group = c.n_heads / n_kv_heads;  // query heads that share a kv head, neighbours
    for (const int tp : possible_tps(c)) {
      for (int rank = 0; rank < tp; ++rank) {
        const Slice q = slice_of(c, find(c, "model.layers.0.self_attn.q_proj.weight"), tp, rank);
        const Slice k = slice_of(c, find(c, "model.layers.0.self_attn.k_proj.weight"), tp, rank);
        EXPECT_EQ(k.row_begin / 128, q.row_begin / 128 / group) << tp << " " << rank;
        EXPECT_EQ((k.row_end - 1) / 128, (q.row_end - 1) / 128 / group) << tp << " " << rank;
      }
    }
  }
}

TEST(SliceMap, TheVocabularyIsPaddedToAMultipleOfTp) {
  ModelConfig c = llama_8b();
  c.vocab_size = 10;
  c.n_kv_heads = 32;
  EXPECT_EQ(vocab_rows_per_rank(c, 4), 3);
  const ModelTensor head = find(c, "lm_head.weight");
  EXPECT_EQ(slice_of(c, head, 4, 3).row_begin, 9);
  EXPECT_EQ(slice_of(c, head, 4, 3).row_end, 12);
  EXPECT_EQ(slice_of(c, head, 8, 7).row_begin, 14) << "a rank may have padding only";
}

TEST(SliceMap, AnImpossibleTpIsRefusedWithTheReasonAndTheTpsThatWork) {
  ModelConfig c = llama_8b();
  c.n_heads = 9;
  c.n_kv_heads = 3;
  c.hidden_dim = 1536;
  const auto message = [&](int tp) {
    try {
      require_tp(c, tp);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::bad_input);
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(message(1), "");
  EXPECT_EQ(message(3), "");
  EXPECT_THAT(message(2),
              ::testing::AllOf(HasSubstr("tp 2"), HasSubstr("9 attention heads"), HasSubstr("possible: 1, 3")));
  EXPECT_THAT(message(9), HasSubstr("intermediate size 1536"));
  EXPECT_THAT(message(0), HasSubstr("possible: 1, 3"));
  c.n_heads = 12;
  c.n_kv_heads = 4;
  EXPECT_THAT(message(6), HasSubstr("4 key/value heads"));
  EXPECT_THAT(possible_tps(c), ElementsAre(1, 2, 4, 12));
}

}  // namespace
}  // namespace firstlight
