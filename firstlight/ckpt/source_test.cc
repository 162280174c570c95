// SPDX-License-Identifier: Apache-2.0
// Tiny models written by transformers and by the package gguf with equal weights (tools/make_source_testdata.py): what
// comes out of both must be equal bit for bit.
#include "firstlight/ckpt/source.h"

#include <nlohmann/json.hpp>

#include "firstlight/base/half.h"
#include "firstlight/ckpt/gguf_source.h"
#include "firstlight/ckpt/safetensors.h"
#include "firstlight/ckpt/source_test_util.h"

namespace firstlight {
namespace {

using nlohmann::json;
using testing_util::bytes_of;
using testing_util::expect_error;
using testing_util::GgufText;
using testing_util::TempDir;

const fs::path kData = FIRSTLIGHT_TESTDATA "/source";

int64_t rows_of(const SourceTensor& t) { return t.shape.size() == 1 ? 1 : t.shape[0]; }
int64_t columns_of(const SourceTensor& t) { return t.shape.back(); }

std::vector<std::byte> read(const Source& source, const SourceTensor& t, int64_t begin, int64_t end, DType as) {
  std::vector<std::byte> out(static_cast<size_t>((end - begin) * columns_of(t)) * size_of(as));
  source.read_rows(t, begin, end, as, out);
  return out;
}
std::vector<std::byte> read_all(const Source& source, const SourceTensor& t, DType as) {
  return read(source, t, 0, rows_of(t), as);
}

struct Pair {
  const char *family, *gguf;
  const char* stored_matrix;
};
class SourcePairs : public testing::TestWithParam<Pair> {};

TEST_P(SourcePairs, GiveTheSameTensorsFromSafetensorsAndGguf) {
  const auto hf = open_source(kData / GetParam().family), gguf = open_source(kData / GetParam().gguf);
  EXPECT_EQ(hf->kind(), "safetensors");
  EXPECT_EQ(gguf->kind(), "gguf");
  ASSERT_EQ(hf->tensors().size(), gguf->tensors().size());
  ASSERT_GE(hf->tensors().size(), 11u);
  EXPECT_EQ(hf->tensors().front().name, "model.embed_tokens.weight");
  for (size_t i = 0; i < hf->tensors().size(); ++i) {
    const SourceTensor &a = hf->tensors()[i], &b = gguf->tensors()[i];
    SCOPED_TRACE(a.name);
    EXPECT_EQ(a.name, b.name);
    EXPECT_EQ(a.shape, b.shape);
    EXPECT_EQ(read_all(*hf, a, DType::f32), read_all(*gguf, b, DType::f32));
    EXPECT_EQ(read_all(*hf, a, DType::bf16), read_all(*gguf, b, DType::bf16));
    // Rows one at a time, and from within a head to within another.
    const auto whole = read_all(*gguf, b, DType::f32);
    const size_t row_bytes = static_cast<size_t>(columns_of(b)) * 4;
    for (int64_t row = 0; row < rows_of(b); ++row) {
      const auto one = read(*gguf, b, row, row + 1, DType::f32);
      ASSERT_TRUE(std::equal(one.begin(), one.end(), whole.begin() + static_cast<int64_t>(row_bytes) * row)) << row;
    }
    if (rows_of(b) > 8) {
      const auto some = read(*gguf, b, 3, rows_of(b) - 2, DType::f32);
      ASSERT_TRUE(std::equal(some.begin(), some.end(), whole.begin() + static_cast<int64_t>(row_bytes) * 3));
    }
    if (a.shape.size() == 2 && std::string_view(GetParam().stored_matrix) != "mixed") {
      EXPECT_EQ(b.stored_type, GetParam().stored_matrix);
    }
  }
}

TEST_P(SourcePairs, TheConfigMadeFromAGgufIsTheModelsOwn) {
  const auto hf = open_source(kData / GetParam().family), gguf = open_source(kData / GetParam().gguf);
  ModelConfig expected = hf->config(), made = gguf->config();
  ASSERT_EQ(gguf->aux_files().front().name, "config.json");
  ModelConfig reread = parse_hf_config(gguf->aux_files().front().content);
  EXPECT_EQ(reread, made);
  for (ModelConfig* c : {&expected, &made}) {  // of the file format, not of the model
    c->dtype = DType::bf16;
    c->eos_token_ids.clear();
    c->bos_token_id.reset();
  }
  EXPECT_EQ(made, expected);
}

INSTANTIATE_TEST_SUITE_P(Families, SourcePairs,
                         testing::Values(Pair{"llama", "llama.gguf", "mixed"},
                                         Pair{"qwen2", "qwen2-00002-of-00002.gguf", "F16"},
                                         Pair{"qwen3", "qwen3.gguf", "BF16"}),
                         [](const auto& info) { return std::string(info.param.family); });

TEST(Source, ReadsAStoredTypeAsItStands) {
  const auto source = open_source(kData / "qwen2");
  const SourceTensor& t = source->tensors().front();
  EXPECT_EQ(t.dtype, DType::f16);
  const auto raw = read_all(*source, t, DType::f16), wide = read_all(*source, t, DType::f32);
  for (size_t i = 0; i < raw.size() / 2; ++i) {
    uint16_t h;
    float f;
    std::memcpy(&h, raw.data() + 2 * i, 2);
    std::memcpy(&f, wide.data() + 4 * i, 4);
    ASSERT_EQ(f16_to_f32(h), f);
  }
  std::vector<std::byte> out(3);
  expect_error(ErrorKind::bug, "3 bytes", [&] { source->read_rows(t, 0, 1, DType::f32, out); });
  expect_error(ErrorKind::bug, "rows [0, 25)", [&] { source->read_rows(t, 0, 25, DType::f32, out); });
  expect_error(ErrorKind::bug, "read as i8", [&] { source->read_rows(t, 0, 1, DType::i8, out); });
}

TEST(Source, FingerprintsDifferWhenAHeaderOrConfigDiffers) {
  EXPECT_EQ(open_source(kData / "qwen3")->fingerprint(), open_source(kData / "qwen3")->fingerprint());
  EXPECT_NE(open_source(kData / "qwen3")->fingerprint(), open_source(kData / "qwen3.gguf")->fingerprint());
  const TempDir dir;
  fs::copy(kData / "qwen3", dir.path(), fs::copy_options::recursive);
  EXPECT_EQ(open_source(dir.path())->fingerprint(), open_source(kData / "qwen3")->fingerprint());
  fs::copy_file(kData / "qwen3.gguf", dir.path() / "renamed.gguf");
  EXPECT_EQ(open_source(dir.path() / "renamed.gguf")->fingerprint(), open_source(kData / "qwen3.gguf")->fingerprint());
  dir.put("tokenizer_config.json", "{}");
  EXPECT_NE(open_source(dir.path())->fingerprint(), open_source(kData / "qwen3")->fingerprint());
}

TEST(Source, TakesAuxiliaryFilesAlong) {
  const TempDir dir;
  fs::copy(kData / "qwen3", dir.path(), fs::copy_options::recursive);
  dir.put("tokenizer.json", "{}");
  dir.put("pytorch_model.bin", "not taken");
  const auto source = open_source(dir.path());
  ASSERT_EQ(source->aux_files().size(), 2u);
  EXPECT_EQ(source->aux_files()[1].name, "tokenizer.json");
}

/// The qwen3 directory with its config.json changed.
void with_config(const TempDir& dir, const std::string& key, const json& value) {
  fs::copy(kData / "qwen3", dir.path(), fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  json config = json::parse(read_text(dir.path() / "config.json"));
  config[key] = value;
  dir.put("config.json", config.dump());
}

TEST(Source, RefusesTensorsThatDoNotFitTheConfig) {
  const TempDir dir;
  with_config(dir, "intermediate_size", 32);
  expect_error(ErrorKind::bad_input, "shape [24, 16], config.json says [32, 16]", [&] { open_source(dir.path()); });
  with_config(dir, "num_hidden_layers", 3);
  expect_error(ErrorKind::bad_input, "'model.layers.2.", [&] { open_source(dir.path()); });
  with_config(dir, "num_hidden_layers", 1);
  expect_error(ErrorKind::unsupported, "'model.layers.1.", [&] { open_source(dir.path()); });
  with_config(dir, "tie_word_embeddings", false);
  expect_error(ErrorKind::bad_input, "'lm_head.weight'", [&] { open_source(dir.path()); });
  with_config(dir, "attention_bias", true);
  expect_error(ErrorKind::bad_input, "bias'", [&] { open_source(dir.path()); });
  fs::remove(dir.path() / "model.safetensors");
  expect_error(ErrorKind::not_found, "0 .safetensors files", [&] { open_source(dir.path()); });
  dir.put("pytorch_model.bin", "");
  expect_error(ErrorKind::unsupported, "pytorch_model.bin", [&] { open_source(dir.path()); });
}

/// Rewrites qwen3's safetensors with one tensor changed or added.
void with_tensor(const TempDir& dir, const std::string& name, DType dtype, std::vector<int64_t> shape,
                 std::string data) {
  const auto file = File::open(kData / "qwen3" / "model.safetensors");
  const auto old = read_safetensors_header(*file);
  std::vector<SafetensorsTensor> tensors;
  std::string body;
  for (const auto& t : old.tensors) {
    if (t.name == name) continue;
    std::string bytes(t.end - t.begin, '\0');
    file->read(old.data_begin + t.begin, std::as_writable_bytes(std::span(bytes)));
    tensors.push_back({t.name, t.dtype, t.shape, 0, 0});
    body += bytes;
  }
  tensors.push_back({name, dtype, std::move(shape), 0, 0});
  body += data;
  fs::copy(kData / "qwen3" / "config.json", dir.path() / "config.json", fs::copy_options::overwrite_existing);
  dir.put("model.safetensors", make_safetensors_header(tensors, {}, 0) + body);
}

TEST(Source, RefusesUnknownTensorsAndIntegerWeightsButSkipsKnownRelics) {
  const TempDir dir;
  with_tensor(dir, "model.layers.0.self_attn.rotary_emb.inv_freq", DType::f32, {6}, std::string(24, 'x'));
  EXPECT_EQ(open_source(dir.path())->tensors().size(), open_source(kData / "qwen3")->tensors().size());
  with_tensor(dir, "model.layers.0.self_attn.q_proj.weight_scale", DType::f32, {1}, "xxxx");
  expect_error(ErrorKind::unsupported, "q_proj.weight_scale", [&] { open_source(dir.path()); });
  with_tensor(dir, "model.norm.weight", DType::i8, {16}, std::string(16, 'x'));
  expect_error(ErrorKind::unsupported, "weights of I8", [&] { open_source(dir.path()); });
  with_tensor(dir, "model.norm.weight", DType::f8_e4m3, {16}, std::string(16, '\x38'));  // 0x38 is 1
  const auto source = open_source(dir.path());
  const SourceTensor& norm = source->tensors().back();
  ASSERT_EQ(norm.name, "model.norm.weight");
  EXPECT_EQ(norm.stored_type, "F8_E4M3");
  const auto ones = read_all(*source, norm, DType::bf16);
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(std::memcmp(ones.data() + 2 * i, "\x80\x3f", 2), 0);
}

TEST(Source, DropsATiedHeadThatEqualsTheEmbeddingAndRefusesAnother) {
  const TempDir dir;
  const auto source = open_source(kData / "qwen3");
  const auto embedding = read_all(*source, source->tensors().front(), DType::bf16);
  std::string bytes(reinterpret_cast<const char*>(embedding.data()), embedding.size());
  with_tensor(dir, "lm_head.weight", DType::bf16, {24, 16}, bytes);
  EXPECT_EQ(open_source(dir.path())->tensors().size(), source->tensors().size());
  bytes.back() ^= 1;
  with_tensor(dir, "lm_head.weight", DType::bf16, {24, 16}, bytes);
  expect_error(ErrorKind::unsupported, "ties lm_head.weight", [&] { open_source(dir.path()); });
}

TEST(Source, NoticesThatAFileWasCutOrReplacedAfterItWasOpened) {
  const TempDir dir;
  fs::copy(kData / "qwen3", dir.path(), fs::copy_options::recursive);
  fs::copy(kData / "qwen3.gguf", dir.path());
  for (const char* name : {"", "qwen3.gguf"}) {
    const auto source = open_source(*name ? dir.path() / name : dir.path());
    const fs::path file = dir.path() / (*name ? name : "model.safetensors");
    const SourceTensor& first = source->tensors().front();
    EXPECT_NO_THROW(read_all(*source, first, DType::f32));
    fs::resize_file(file, fs::file_size(file) - 1);
    expect_error(ErrorKind::bad_input, file.native(), [&] { read_all(*source, first, DType::f32); });
  }
}

TEST(ModelKind, TellsTheThreeKindsApart) {
  const TempDir dir;
  EXPECT_EQ(model_kind(kData / "qwen3"), ModelKind::hf_directory);
  EXPECT_EQ(model_kind(kData / "qwen3.gguf"), ModelKind::gguf);
  expect_error(ErrorKind::bad_input, "neither", [&] { model_kind(dir.path()); });
  expect_error(ErrorKind::not_found, "no such file", [&] { model_kind(dir.path() / "absent"); });
  expect_error(ErrorKind::bad_input, "give the directory", [&] { model_kind(kData / "qwen3" / "model.safetensors"); });
  expect_error(ErrorKind::bad_input, "neither", [&] { model_kind(dir.put("empty", "")); });
  dir.put("config.json", "{}");
  EXPECT_EQ(model_kind(dir.path()), ModelKind::hf_directory);
  dir.put("READY", "");
  EXPECT_EQ(model_kind(dir.path()), ModelKind::rank_checkpoint);
  expect_error(ErrorKind::bad_input, "is a rank checkpoint already", [&] { open_source(dir.path()); });
}

TEST(GgufNames, AreTranslatedOrRefused) {
  EXPECT_EQ(hf_name_of_gguf("blk.12.ffn_down.weight"), "model.layers.12.mlp.down_proj.weight");
  EXPECT_EQ(hf_name_of_gguf("blk.0.attn_k.bias"), "model.layers.0.self_attn.k_proj.bias");
  for (const char* name :
       {"blk.01.attn_k.bias", "blk..attn_k.bias", "blk.x.attn_k.bias", "blk.0.attn_k.scale", "blk.0.weight", "blk.0",
        "blk.", "x", "", "blk.0.ffn_gate_inp.weight", "blk.0.attn_qkv.weight"}) {
    EXPECT_EQ(hf_name_of_gguf(name), "") << name;
  }
}

/// Metadata of a small llama GGUF without tensors.
GgufText llama_keys() {
  GgufText g;
  const auto number = [&](const char* key, uint32_t value) { g.key(key, 4, bytes_of(value)); };
  g.key("general.architecture", 8, GgufText::text("llama"));
  number("llama.block_count", 1);
  number("llama.context_length", 64);
  number("llama.embedding_length", 32);
  number("llama.feed_forward_length", 32);
  number("llama.attention.head_count", 2);
  g.tensor("token_embd.weight", {32, 24}, 0, 0).data.assign(32 * 24 * 4, 'x');
  return g;
}
void refuse(const GgufText& g, ErrorKind kind, std::string_view part) {
  const TempDir dir;
  const fs::path path = dir.put("x.gguf", g.file());
  expect_error(kind, part, [&] { open_source(path); });
}

TEST(GgufConfig, RefusesByNameWhatIsNotDone) {
  constexpr auto kind = ErrorKind::unsupported;
  refuse(llama_keys(), ErrorKind::bad_input,
         "'model.layers.0.input_layernorm.weight'");  // nothing else is wrong with it
  refuse(llama_keys().key("llama.expert_count", 4, bytes_of(8u)), kind, "mixture-of-experts");
  refuse(llama_keys().key("llama.rope.scaling.type", 8, GgufText::text("yarn")), kind, "'yarn'");
  refuse(llama_keys().key("llama.attention.sliding_window", 4, bytes_of(32u)), kind, "sliding window of 32");
  refuse(llama_keys().key("llama.rope.dimension_count", 4, bytes_of(8u)), kind, "rotary embedding of 8 of 16");
  refuse(llama_keys().key("llama.attention.value_length", 4, bytes_of(8u)), kind, "value heads");
  refuse(llama_keys().key("llama.logit_scale", 6, bytes_of(0.5f)), kind, "logit_scale");
  refuse(llama_keys().key("llama.attention.head_count_kv", 4, bytes_of(0u)), ErrorKind::bad_input, "KV heads is 0");
  GgufText g;
  refuse(g, ErrorKind::bad_input, "'general.architecture' is missing");
  g.key("general.architecture", 8, GgufText::text("gemma3"));
  refuse(g, kind, "'gemma3'");
  g = llama_keys();
  g.tensor("rope_freqs.weight", {8}, 0, 32 * 24 * 4);
  for (int i = 0; i < 8; ++i) g.data += bytes_of(i < 4 ? 1.0f : 5.0f);
  refuse(g, kind, "rope_freqs.weight");
  g = llama_keys();
  g.tensor("blk.0.attn_q.bias", {32}, 0, 32 * 24 * 4).data.append(128, 'x');
  refuse(g, kind, "attention biases");
  g = llama_keys();
  g.tensor("v.patch_embd.weight", {32}, 0, 32 * 24 * 4).data.append(128, 'x');
  refuse(g, kind, "'v.patch_embd.weight'");
  g = llama_keys();
  g.tensor("blk.0.attn_q.weight", {256}, 16, 32 * 24 * 4).data.append(96, 'x');
  refuse(g, kind, "IQ2_XXS");
}

}  // namespace
}  // namespace firstlight
