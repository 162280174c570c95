// SPDX-License-Identifier: Apache-2.0
// Against the Python package tokenizers: data made by tools/make_tokenizer_golden.py.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "firstlight/text/pre_tokenizer.h"
#include "firstlight/text/tokenizer.h"
#include "firstlight/text/tokenizer_image.h"
#include "firstlight/text/unicode.h"

namespace firstlight {
namespace {

using Json = nlohmann::json;

std::string read_data(const std::string& name) {
  std::ifstream file(FIRSTLIGHT_TESTDATA "/tokenizer/" + name, std::ios::binary);
  EXPECT_TRUE(file) << name;
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A tokenizer.json, read as it is or through its image.
class Golden : public testing::TestWithParam<std::tuple<const char*, bool>> {
 protected:
  Golden()
      : tokenizer_(make(read_data(family() + ".json"), std::get<1>(GetParam()))),
        cases_(Json::parse(read_data(family() + "_cases.json"))),
        strings_(cases_["strings"].get<std::vector<std::string>>()),
        ids_(cases_["ids"].get<std::vector<std::vector<int>>>()) {}

  static std::string family() { return std::get<0>(GetParam()); }
  static Tokenizer make(const std::string& json, bool through_image) {
    return Tokenizer(through_image ? parse_tokenizer_image(make_tokenizer_image(json)) : parse_tokenizer_json(json));
  }

  Tokenizer tokenizer_;
  Json cases_;
  std::vector<std::string> strings_;
  std::vector<std::vector<int>> ids_;
};

TEST_P(Golden, EncodesAsTokenizersDoes) {
  ASSERT_GE(strings_.size(), 60u);
  for (size_t i = 0; i < strings_.size(); ++i) EXPECT_EQ(tokenizer_.encode(strings_[i]), ids_[i]) << strings_[i];
}

TEST_P(Golden, EncodesSpecialTokensAsPlainTextWhenAskedTo) {
  const auto plain = cases_["plain"].get<std::vector<std::vector<int>>>();
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_EQ(tokenizer_.encode(strings_[3 * i], false, false), plain[i]) << strings_[3 * i];
  }
}

TEST_P(Golden, DecodesAsTokenizersDoesAtOnceAndTokenByToken) {
  for (const bool skip : {true, false}) {
    const char* key = skip ? "hidden" : "shown";
    if (!cases_.contains(key)) continue;
    const auto texts = cases_[key].get<std::vector<std::string>>();
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(tokenizer_.decode(ids_[i], skip), texts[i]) << strings_[i];
      Detokenizer stream(tokenizer_, skip);
      std::string streamed;
      for (const int id : ids_[i]) {
        const std::string part = stream.push(id);
        EXPECT_TRUE(is_utf8(part)) << strings_[i];
        streamed += part;
      }
      EXPECT_EQ(streamed + stream.finish(), texts[i]) << strings_[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, Golden,
                         testing::Combine(testing::Values("gpt2", "smollm", "llama3", "qwen2", "llama2", "llama2_first",
                                                          "llama2_split", "llama2_normalized", "llama2_unknown",
                                                          "flags_qwen2", "flags_llama2"),
                                          testing::Bool()),
                         [](const auto& family) {
                           return std::string(std::get<0>(family.param)) + (std::get<1>(family.param) ? "_image" : "");
                         });

TEST(PieceEnd, CutsWherePatternsDo) {
  size_t n_pieces = 0;
  const Json cases = Json::parse(read_data("pieces_cases.json"));
  for (const auto& [pattern, texts] : cases.items()) {
    const PreTokenizer pre = pattern == "smollm" ? PreTokenizer::smollm : pre_tokenizer_of_pattern(pattern).value();
    for (const auto& pieces : texts.get<std::vector<std::vector<std::string>>>()) {
      std::string text;
      for (const std::string& piece : pieces) text += piece;
      size_t begin = 0;
      for (const std::string& piece : pieces) {
        const size_t end = piece_end(pre, text, begin);
        ASSERT_EQ(text.substr(begin, end - begin), piece) << "of '" << text << "' by " << pattern;
        begin = end;
        ++n_pieces;
      }
    }
  }
  EXPECT_GT(n_pieces, 1000u);
}

TEST(Nfc, ComposesAsTokenizersDoes) {
  const auto cases = Json::parse(read_data("nfc_cases.json")).get<std::vector<std::pair<std::string, std::string>>>();
  ASSERT_GE(cases.size(), 50u);
  for (const auto& [text, composed] : cases) {
    EXPECT_EQ(to_nfc(text), composed) << text;
    EXPECT_FALSE(is_surely_nfc(text)) << text;
    EXPECT_EQ(to_nfc(composed), composed) << text;
  }
}

}  // namespace
}  // namespace firstlight
