// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/cli/context.h"
#include "firstlight/cli/session.h"

namespace firstlight::cli {
namespace {

TEST(ParseSize, KnowsBinaryAndDecimalUnits) {
  EXPECT_EQ(parse_size("2GiB", "--memory"), 2ull << 30);
  EXPECT_EQ(parse_size("2G", "--memory"), 2ull << 30);
  EXPECT_EQ(parse_size("2GB", "--memory"), 2'000'000'000ull);
  EXPECT_EQ(parse_size("1.5MiB", "--memory"), 3ull << 19);
  EXPECT_EQ(parse_size("4096", "--memory"), 4096u);
}

TEST(ParseSize, RefusesWhatIsNoSizeAndNamesTheOption) {
  for (const char* text : {"", "GiB", "-1", "2 potatoes", "1e30T", "nan"}) {
    try {
      parse_size(text, "--memory");
      FAIL() << text;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::bad_input);
      EXPECT_THAT(e.what(), testing::HasSubstr("--memory"));
    }
  }
}

/// A byte-level tokenizer without merges; "<s>" is token 256.
std::string tokenizer_json() {
  nlohmann::json vocab;
  int id = 0;
  for (unsigned c = 0x21; c < 0x144; ++c) {
    if ((c > 0x7E && c < 0xA1) || c == 0xAD) continue;
    std::string letter;
    if (c < 0x80) {
      letter = static_cast<char>(c);
    } else {
      letter = {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
    }
    vocab[letter] = id++;
  }
  vocab["<s>"] = id;
  const nlohmann::json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  return nlohmann::json{{"pre_tokenizer", bytes},
                        {"decoder", bytes},
                        {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}}
      .dump();
}

ModelText text_of(std::map<std::string, std::string> files) {
  files["tokenizer.json"] = tokenizer_json();
  return load_text({[files](const std::string& name) {
                      const auto found = files.find(name);
                      return found == files.end() ? std::string() : found->second;
                    },
                    {},
                    nullptr});
}

TEST(ModelText, TokenizerJsonDecidesOfBosAndEosAsInTransformers5) {
  const ModelText text =
      text_of({{"tokenizer_config.json", R"({"add_bos_token":true,"add_eos_token":true,"bos_token":"<s>"})"}});
  EXPECT_EQ(text.tokenizer->encode("!"), std::vector<int>{0});
}

TEST(ModelText, LooksForTheChatTemplateWhereTransformersDoesAndThenInTheOlderFile) {
  const std::string older = R"({"chat_template":"older"})", config = R"({"chat_template":"config"})";
  const auto rendered = [](const ModelText& text) { return text.chat->render({{"user", "x"}}, {}); };
  EXPECT_EQ(text_of({}).chat, nullptr);
  EXPECT_EQ(rendered(text_of({{"chat_template.json", older}})), "older");
  EXPECT_EQ(rendered(text_of({{"chat_template.json", older}, {"tokenizer_config.json", config}})), "config");
  EXPECT_EQ(rendered(text_of({{"tokenizer_config.json", config}, {"chat_template.jinja", "jinja"}})), "jinja");
}

TEST(RequireUtf8, NamesTheFirstByteThatIsNone) {
  require_utf8("grün 你好 \xF0\x9F\x99\x82", "-p");
  require_utf8("", "-p");
  for (const auto& [text, at] : {std::pair("ab\xFFz", "-p: byte 2 (255)"), std::pair("a\xE2\x82", "byte 1 (226)"),
                                 std::pair("\xC0\x80", "byte 0 (192)")}) {
    try {
      require_utf8(text, "-p");
      FAIL() << at;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::bad_input);
      EXPECT_THAT(e.what(), testing::HasSubstr(at));
    }
  }
}

TEST(Timeline, DrawsEveryPhaseWithItsTimes) {
  const std::string text = draw_timeline({{"open", 0.001, 0.002}, {"read", 0.002, 0.05}}, 0.1);
  EXPECT_THAT(text, testing::HasSubstr("open"));
  EXPECT_THAT(text, testing::HasSubstr("0.002 – 0.050"));
}

}  // namespace
}  // namespace firstlight::cli
