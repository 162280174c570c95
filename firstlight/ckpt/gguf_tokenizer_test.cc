// SPDX-License-Identifier: Apache-2.0
// The JSON files made from a GGUF's tokenizer. Golden merges: tools/make_source_testdata.py, by transformers.
#include "firstlight/ckpt/gguf_tokenizer.h"

#include <map>
#include <nlohmann/json.hpp>

#include "firstlight/ckpt/source.h"
#include "firstlight/ckpt/source_json.h"
#include "firstlight/ckpt/source_test_util.h"

namespace firstlight {
namespace {

using nlohmann::json;
using testing_util::bytes_of;
using testing_util::expect_error;
using testing_util::GgufText;

const fs::path kData = FIRSTLIGHT_TESTDATA "/source";

TEST(GgufTokenizer, TokenizerJsonHasTheFamilysSteps) {
  const auto source = open_source(kData / "llama.gguf");
  std::map<std::string, std::string> files;
  for (const AuxFile& file : source->aux_files()) files[file.name] = file.content;
  EXPECT_EQ(files["chat_template.jinja"], "{{ messages[0]['content'] }}");
  EXPECT_EQ(json::parse(files["generation_config.json"])["eos_token_id"], json({0, 23}));  // eos and eot
  EXPECT_EQ(json::parse(files["tokenizer_config.json"])["eos_token"], "<|end|>");
  const json t = json::parse(files["tokenizer.json"]);
  EXPECT_EQ(t["pre_tokenizer"]["pretokenizers"][0], json({{"type", "Digits"}, {"individual_digits", true}}));
  EXPECT_EQ(t["pre_tokenizer"]["pretokenizers"][1]["use_regex"], true);
  EXPECT_EQ(t["model"]["merges"], json::parse(R"([["Ġ", "a"], ["a", "b"], ["Ġ", "ab"]])"));
  EXPECT_EQ(t["model"]["vocab"]["Ġab"], 22);
  EXPECT_EQ(t["model"]["vocab"].size(), 24u);
  ASSERT_EQ(t["added_tokens"].size(), 2u);
  EXPECT_EQ(t["added_tokens"][0]["special"], true);
  EXPECT_EQ(t["added_tokens"][1]["content"], "<|user|>");
  EXPECT_EQ(t["added_tokens"][1]["special"], false);
}

std::string text_array(const std::vector<std::string>& texts) {
  std::string out = bytes_of(8u) + bytes_of(static_cast<uint64_t>(texts.size()));
  for (const auto& text : texts) out += GgufText::text(text);
  return out;
}
json tokenizer_of(const GgufText& g) {
  const std::string file = g.file();
  return json::parse(make_tokenizer_json(parse_gguf_header(file, file.size(), "f")->metadata));
}

TEST(GgufTokenizer, MergesFromScoresAreTransformers) {
  const json golden = json::parse(read_text(kData / "spm_merges.json"));
  GgufText g;
  g.key("tokenizer.ggml.model", 8, GgufText::text("llama"))
      .key("tokenizer.ggml.tokens", 9, text_array(golden["tokens"]));
  std::string scores, types;
  for (const float s : golden["scores"].get<std::vector<float>>()) scores += bytes_of(s);
  for (const int32_t t : golden["types"].get<std::vector<int32_t>>()) types += bytes_of(t);
  const auto n = static_cast<uint64_t>(golden["tokens"].size());
  g.key("tokenizer.ggml.scores", 9, bytes_of(6u) + bytes_of(n) + scores)
      .key("tokenizer.ggml.token_type", 9, bytes_of(5u) + bytes_of(n) + types);
  g.key("tokenizer.ggml.bos_token_id", 4, bytes_of(1u)).key("tokenizer.ggml.unknown_token_id", 4, bytes_of(0u));
  const json t = tokenizer_of(g);
  EXPECT_EQ(t["model"]["merges"], golden["merges"]);
  EXPECT_EQ(t["model"]["byte_fallback"], true);
  EXPECT_EQ(t["model"]["unk_token"], "<unk>");
  EXPECT_EQ(t["normalizer"]["normalizers"][0]["prepend"], "▁");
  EXPECT_EQ(t["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");  // added unless the metadata says no
  EXPECT_EQ(t["pre_tokenizer"], json());
}

TEST(GgufTokenizer, RefusesByNameWhatItDoesNotKnow) {
  const auto with = [](const char* model, const char* pre, std::vector<std::string> tokens,
                       std::vector<std::string> merges) {
    GgufText g;
    g.key("tokenizer.ggml.model", 8, GgufText::text(model));
    if (pre != nullptr) g.key("tokenizer.ggml.pre", 8, GgufText::text(pre));
    g.key("tokenizer.ggml.tokens", 9, text_array(tokens)).key("tokenizer.ggml.merges", 9, text_array(merges));
    return g;
  };
  const auto refuse_it = [](const GgufText& g, ErrorKind kind, std::string_view part) {
    expect_error(kind, part, [&] { tokenizer_of(g); });
  };
  EXPECT_EQ(tokenizer_of(with("gpt2", "gpt-2", {"a", "b", "ab"}, {"a b"}))["model"]["merges"].size(), 1u);
  EXPECT_EQ(tokenizer_of(with("gpt2", "qwen2", {"a"}, {}))["normalizer"]["type"], "NFC");
  EXPECT_EQ(tokenizer_of(with("gpt2", "llama-bpe", {"a"}, {}))["model"]["ignore_merges"], true);
  refuse_it(with("bert", nullptr, {"a"}, {}), ErrorKind::unsupported, "'bert'");
  refuse_it(with("gpt2", "tekken", {"a"}, {}), ErrorKind::unsupported, "'tekken'");
  refuse_it(with("gpt2", nullptr, {"a"}, {}), ErrorKind::unsupported, "tokenizer.ggml.pre");
  refuse_it(with("gpt2", "gpt-2", {}, {}), ErrorKind::bad_input, "tokens");
  refuse_it(with("gpt2", "gpt-2", {"a", "a"}, {}), ErrorKind::bad_input, "'a' appears twice");
  refuse_it(with("gpt2", "gpt-2", {"a", "b"}, {"a b"}), ErrorKind::bad_input, "'a b' is of or to");
  refuse_it(with("gpt2", "gpt-2", {"a", "b"}, {"ab"}), ErrorKind::bad_input, "no pair");
  refuse_it(with("gpt2", "gpt-2", {"a"}, {""}), ErrorKind::bad_input, "no pair");
  refuse_it(with("llama", nullptr, {"a"}, {}), ErrorKind::bad_input, "scores");
}

TEST(JsonWriter, WritesWhatAParserReadsBack) {
  std::string text;
  for (int c = 0; c < 128; ++c) text += static_cast<char>(c);
  text += "é▁𝄞";
  JsonWriter writer;
  writer.begin_object()
      .key(text)
      .string(text)
      .key("n")
      .number(-3)
      .key("x")
      .number(1e-5)
      .key("t")
      .number(500000.0)
      .key("big")
      .number(1e300);
  writer.key("list")
      .begin_array()
      .boolean(true)
      .null()
      .begin_object()
      .end_object()
      .raw("[1,2]")
      .end_array()
      .end_object();
  const std::string out = writer.take();
  const json back = parse_json_strictly(out, "x");
  EXPECT_EQ(back[text], text);
  EXPECT_EQ(back["x"], 1e-5);
  EXPECT_NE(out.find("500000.0"), std::string::npos);
  EXPECT_EQ(back["big"], 1e300);
  EXPECT_EQ(back["list"], json({true, nullptr, json::object(), {1, 2}}));
  std::string bad;
  append_json_string(bad, "a\xff\xc3");
  EXPECT_EQ(bad, "\"a\xef\xbf\xbd\xef\xbf\xbd\"");
}

}  // namespace
}  // namespace firstlight
