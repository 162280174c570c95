// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/cli/arguments.h"
#include "firstlight/cli/context.h"
#include "firstlight/cli/session.h"
#include "firstlight/cli/standard_input.h"

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

TEST(DefaultTp, IsTheLargestStoredThatFitsARankADevice) {
  Manifest manifest;
  EXPECT_THROW(default_tp(manifest, 1), Error);
  for (const int tp : {2, 4, 8}) manifest.tps.push_back({tp, {}});
  EXPECT_EQ(default_tp(manifest, 1), 2) << "none fits: the fewest ranks on one device";
  EXPECT_EQ(default_tp(manifest, 2), 2);
  EXPECT_EQ(default_tp(manifest, 7), 4);
  EXPECT_EQ(default_tp(manifest, 100), 8);
  manifest.tps.insert(manifest.tps.begin(), {1, {}});
  EXPECT_EQ(default_tp(manifest, 1), 1);
}

/// What plain_words() makes of a command line with a sub-command "go" that has an option of each kind.
std::string refusal_of(std::vector<std::string> words) {
  CLI::App app("", "firstlight");
  app.require_subcommand(1);
  CLI::App* go = app.add_subcommand("go", "");
  std::string model, reader, text;
  int tp = 0;
  double heat = 0;
  uint64_t seed = 0;
  bool json = false;
  go->add_option("MODEL", model)->required();
  go->add_option("--tp", tp)->check(whole_number(1, 1024));
  go->add_option("-n,--max-tokens", tp)->check(whole_number(1, 1 << 30));
  go->add_option("--heat", heat)->check(number(0, 2));
  go->add_option("--seed", seed)->check(seed_number());
  CLI::Option* other = go->add_option("--reader", reader)->check(one_of({"auto", "pread"}));
  go->add_option("--text", text)->excludes(other);
  go->add_flag("--json", json);
  std::reverse(words.begin(), words.end());
  try {
    app.parse(words);
  } catch (const CLI::ParseError& e) {
    return plain_words(app, e);
  }
  return "";
}

TEST(PlainWords, SayWhatIsWrongInTheOrderInWhichItWasGiven) {
  using Words = std::vector<std::string>;
  const std::vector<std::pair<Words, std::string>> cases{
      {{"go", "m", "--tp", "3", "--heat", "1.5", "--seed", "18446", "--reader", "pread", "--json"}, ""},
      {{}, "a command is missing"},
      {{"come", "along"}, "firstlight does not know what to do with 'come', 'along'"},
      {{"go"}, "MODEL is missing"},
      {{"go", "m", "b", "--c"}, "firstlight go does not know what to do with 'b', '--c'"},
      {{"go", "m", "--tp", "a"}, "--tp: 'a' is not a whole number from 1 to 1024"},
      {{"go", "m", "--tp", "1x"}, "--tp: '1x' is not a whole number from 1 to 1024"},
      {{"go", "m", "--tp", "2000"}, "--tp: '2000' is not a whole number from 1 to 1024"},
      {{"go", "m", "--tp", "0x10"}, "--tp: '0x10' is not a whole number from 1 to 1024"},
      {{"go", "m", "--tp", ""}, "--tp: '' is not a whole number from 1 to 1024"},
      {{"go", "m", "-n", "99999999999999999999"},
       "--max-tokens: '99999999999999999999' is not a whole number from 1 on"},
      {{"go", "m", "--heat", "nan"}, "--heat: 'nan' is not a number from 0 to 2"},
      {{"go", "m", "--seed", "-1"}, "--seed: '-1' is no seed: a whole number of up to 19 digits"},
      {{"go", "m", "--reader", "x"}, "--reader: 'x' is none of auto, pread"},
      {{"go", "m", "--tp", "1", "--tp", "2"}, "--tp is given 2 times, it takes one value"},
      {{"go", "m", "--tp"}, "--tp needs a value behind it"},
      {{"go", "m", "--text", "a", "--reader", "auto"}, "--reader and --text are given: one of them is enough"},
      {{"go", "m", "--json=perhaps"}, "--json: 'perhaps' is not what it takes"},
  };
  for (const auto& [words, expected] : cases) EXPECT_EQ(refusal_of(words), expected);
}

TEST(Timeline, DrawsEveryPhaseWithItsTimes) {
  const std::string text = draw_timeline({{"open", 0.001, 0.002}, {"read", 0.002, 0.05}}, 0.1);
  EXPECT_THAT(text, testing::HasSubstr("open"));
  EXPECT_THAT(text, testing::HasSubstr("0.002 – 0.050"));
}

TEST(StandardInput, GivesLinesAndSaysWhetherTheNextIsThere) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  const std::string text = "one\n\ntwo\nhalf";
  ASSERT_EQ(::write(ends[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  StandardInput input(ends[0]);
  std::string line;
  EXPECT_FALSE(input.has_line());
  ASSERT_TRUE(input.read_line(line));
  EXPECT_EQ(line, "one");
  ASSERT_TRUE(input.read_line(line));
  EXPECT_EQ(line, "");
  EXPECT_TRUE(input.has_line());
  ASSERT_TRUE(input.read_line(line));
  EXPECT_EQ(line, "two");
  EXPECT_FALSE(input.has_line()) << "half a line would be waited for";
  ::close(ends[1]);
  ASSERT_TRUE(input.read_line(line));
  EXPECT_EQ(line, "half");
  EXPECT_FALSE(input.read_line(line));
  ::close(ends[0]);
}

TEST(StandardInput, ThatCannotBeReadIsNotEmpty) {
  const int folder = ::open("/", O_RDONLY | O_DIRECTORY);
  ASSERT_GE(folder, 0);
  for (const int fd : {folder, -1}) {
    try {
      StandardInput(fd).read_all();
      FAIL() << fd;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::io);
      EXPECT_THAT(e.what(), testing::HasSubstr("read 'standard input': "));
    }
  }
  ::close(folder);
}

}  // namespace
}  // namespace firstlight::cli
