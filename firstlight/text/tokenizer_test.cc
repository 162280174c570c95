// SPDX-License-Identifier: Apache-2.0
#include "firstlight/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "firstlight/base/error.h"
#include "firstlight/text/bpe.h"
#include "firstlight/text/gguf_tokenizer.h"
#include "firstlight/text/unicode.h"

namespace firstlight {
namespace {

using Json = nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

/// Byte-level: ids 0 to 255 are the bytes' letters in order of letter, then whatever is given.
Json byte_level_json(const std::vector<std::string>& merges = {}) {
  Json vocab = Json::object();
  int id = 0;
  for (char32_t c = 0x21; c < 0x144; ++c) {
    if ((c > 0x7E && c < 0xA1) || c == 0xAD) continue;
    std::string letter;
    append_utf8(letter, c);
    vocab[letter] = id++;
  }
  for (const std::string& merge : merges) {
    const size_t space = merge.find(' ');
    vocab[merge.substr(0, space) + merge.substr(space + 1)] = id++;
  }
  return {{"version", "1.0"},
          {"added_tokens", Json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
          {"model", {{"type", "BPE"}, {"unk_token", nullptr}, {"vocab", vocab}, {"merges", merges}}}};
}

Tokenizer make(const Json& json) { return Tokenizer(parse_tokenizer_json(json.dump())); }

void expect_refused(const std::string& json, ErrorKind kind, const std::string& part) {
  try {
    const Tokenizer tokenizer(parse_tokenizer_json(json));
    ADD_FAILURE() << "accepted; expected an error about " << part;
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind) << e.what();
    EXPECT_THAT(e.what(), HasSubstr(part));
  }
}

TEST(TokenizerJson, RefusesByNameWhatItDoesNotKnow) {
  const auto with = [](const char* pointer, const Json& value) {
    Json json = byte_level_json();
    json[Json::json_pointer(pointer)] = value;
    return json.dump();
  };
  const auto no = ErrorKind::unsupported;
  expect_refused(with("/model/type", "Unigram"), no, "Unigram");
  expect_refused(with("/normalizer", {{"type", "NFKC"}}), no, "NFKC");
  expect_refused(with("/pre_tokenizer/add_prefix_space", true), no, "add_prefix_space");
  expect_refused(with("/pre_tokenizer", {{"type", "Whitespace"}}), no, "Whitespace");
  const Json split = {
      {"type", "Split"}, {"pattern", {{"Regex", "[a-z]+"}}}, {"behavior", "Isolated"}, {"invert", false}};
  const Json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  expect_refused(with("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, bytes}}}), no, "[a-z]+");
  expect_refused(with("/decoder", {{"type", "WordPiece"}}), no, "WordPiece");
  expect_refused(with("/decoder", nullptr), no, "decoder");
  expect_refused(with("/post_processor", {{"type", "RobertaProcessing"}}), no, "RobertaProcessing");
  expect_refused(with("/model/dropout", 0.1), no, "dropout");
  expect_refused(with("/model/end_of_word_suffix", "</w>"), no, "end_of_word_suffix");
}

TEST(TokenizerJson, RefusesNonsense) {
  const auto with = [](const char* pointer, const Json& value) {
    Json json = byte_level_json({"h e"});
    json[Json::json_pointer(pointer)] = value;
    return json.dump();
  };
  const auto bad = ErrorKind::bad_input;
  for (const char* text : {"", "{", "[]", "{}", "{\"model\":{}}", "{\"a\":1}x", "{\"a\":}", "nul", "{\"a\" 1}"}) {
    EXPECT_THROW(parse_tokenizer_json(text), Error) << text;
  }
  const std::string whole = byte_level_json({"h e"}).dump();
  for (size_t n = 0; n < whole.size(); n += 7) EXPECT_THROW(parse_tokenizer_json(whole.substr(0, n)), Error) << n;
  expect_refused(with("/model/merges/0", "h xx"), bad, "xx");
  expect_refused(with("/model/merges/0", "h e e"), bad, "two tokens");
  expect_refused(with("/model/merges/0", "h i"), bad, "'hi'");
  expect_refused(with("/model/vocab/he", 3), bad, "same id");
  expect_refused(with("/model/vocab/he", -1), bad, "whole number");
  expect_refused(with("/model/vocab/he", 1.5), bad, "whole number");
  expect_refused(with("/model/vocab/he", 2147483648u), bad, "2147483648");
  expect_refused(with("/model/vocab/he", 99999999999u), bad, "4294967295");
  const Json added = {{"id", 0},         {"content", "<x>"},     {"special", true},    {"lstrip", false},
                      {"rstrip", false}, {"single_word", false}, {"normalized", false}};
  expect_refused(with("/added_tokens", Json::array({added})), bad, "<x>");
  Json twice = added;
  twice["id"] = 257;
  expect_refused(with("/added_tokens", Json::array({twice, twice})), ErrorKind::unsupported, "258 is next");
  std::string ill = whole;
  ill.replace(ill.find("\"he\""), 4, "\"h\xFF\"");
  expect_refused(ill, bad, "UTF-8");
  std::string repeated = whole;
  repeated.replace(repeated.find("\"he\""), 4, "\"h\":3,\"he\"");
  expect_refused(repeated, bad, "'h'");
}

TEST(TokenizerJson, ReadsEscapesAndIdsInAnyOrderWithHoles) {
  Json json = byte_level_json();
  json["model"]["vocab"]["\xC4\xA0\"\\/"] = 400;
  std::string text = json.dump(2);
  text.replace(text.find("\"a\""), 3, "\"\\u0061\"");
  const Tokenizer tokenizer(parse_tokenizer_json(text));
  EXPECT_EQ(tokenizer.size(), 401);
  EXPECT_EQ(tokenizer.find("\xC4\xA0\"\\/"), 400);
  EXPECT_EQ(tokenizer.bytes_of(400), " \"\\/");
  EXPECT_EQ(tokenizer.find("a"), 'a' - 0x21);
  EXPECT_EQ(tokenizer.bytes_of(300), "");
  EXPECT_EQ(tokenizer.decode({300, 401, -1, 'a' - 0x21}), "a");
}

TEST(Tokenizer, ReadsIllFormedTextAsReplacementCharacters) {
  const Tokenizer tokenizer = make(byte_level_json());
  EXPECT_EQ(tokenizer.encode("a\xFF\xE2\x82z"), tokenizer.encode("a\xEF\xBF\xBD\xEF\xBF\xBDz"));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("a\xC3")), "a\xEF\xBF\xBD");
}

TEST(Detokenizer, NeverEndsInHalfACharacter) {
  const Tokenizer tokenizer = make(byte_level_json());
  const std::vector<int> ids = tokenizer.encode("\xF0\x9F\x98\x80!");
  ASSERT_EQ(ids.size(), 5u);
  Detokenizer stream(tokenizer);
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.push(ids[1]), "");
  EXPECT_EQ(stream.push(ids[2]), "");
  EXPECT_EQ(stream.push(ids[3]), "\xF0\x9F\x98\x80");
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.push(ids[4]), "\xEF\xBF\xBD!");
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Tokenizer, MayBeUsedByThreadsAtOnce) {
  const Tokenizer tokenizer = make(byte_level_json({"h e", "l l", "he ll"}));
  const std::vector<int> expected = tokenizer.encode("hello, hello\xCC\x81 123");
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) EXPECT_EQ(tokenizer.encode("hello, hello\xCC\x81 123"), expected);
    });
  }
}

/// By the definition: again and again the lowest rank, of equals the leftmost.
std::vector<int32_t> merge_plainly(const MergeIndex& merges, std::vector<int32_t> symbols) {
  while (true) {
    size_t best = 0;
    Merge lowest{MergeIndex::kNone, -1};
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const Merge merge = merges.find(static_cast<uint32_t>(symbols[i]), static_cast<uint32_t>(symbols[i + 1]));
      if (merge.rank < lowest.rank) {
        lowest = merge;
        best = i;
      }
    }
    if (lowest.rank == MergeIndex::kNone) return symbols;
    symbols[best] = lowest.result;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(Merger, GivesWhatTheDefinitionGivesForAnyLength) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    // Three letters and tokens made of pairs of what is there, in shuffled order of rank, some of equal rank.
    std::vector<std::pair<int, int>> made;
    for (int i = 0; i < 24; ++i) {
      made.emplace_back(static_cast<int>(random() % (3 + made.size())), static_cast<int>(random() % (3 + made.size())));
    }
    std::vector<uint32_t> ranks(made.size());
    for (auto& rank : ranks) rank = random() % (round % 2 == 0 ? 8 : 1000);
    MergeIndex merges(made.size());
    for (size_t i = 0; i < made.size(); ++i) {
      merges.insert(static_cast<uint32_t>(made[i].first), static_cast<uint32_t>(made[i].second),
                    {ranks[i], static_cast<int32_t>(3 + i)});
    }
    Merger merger(merges);
    for (const size_t n : {0u, 1u, 2u, 5u, 31u, 32u, 33u, 40u, 300u}) {
      std::vector<int32_t> symbols(n), out;
      for (auto& symbol : symbols) symbol = static_cast<int32_t>(random() % 3);
      const std::vector<int32_t> expected = merge_plainly(merges, symbols);
      merger.merge(symbols, out);
      ASSERT_EQ(out, expected) << "round " << round << ", " << n << " symbols";
    }
  }
}

TEST(Tokenizer, TakesLongRunsOfOneCharacter) {
  const Tokenizer tokenizer = make(byte_level_json({"a a", "aa aa", "aaaa aaaa"}));
  const std::vector<int> ids = tokenizer.encode(std::string(1'000'007, 'a'));
  EXPECT_EQ(ids.size(), 125'000u + 3);
  EXPECT_EQ(ids.front(), 258);
}

StringTable table(const std::vector<std::string>& strings) {
  StringTable out;
  for (const std::string& s : strings) out.push_back(s);
  return out;
}

GgufTokenizerFields scored_fields() {
  GgufTokenizerFields fields;
  fields.model = "llama";
  fields.tokens = table({"<unk>", "<s>", "</s>", "<0x21>", "\xE2\x96\x81", "a", "b", "ab",
                         "\xE2\x96\x81"
                         "a",
                         "ba", "<s", ">"});
  fields.token_type = {2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 1};
  fields.scores = {0, 0, 0, 0, -9, -9, -9, -1, -2, -1, -9, -9};
  fields.bos_id = 1;
  fields.eos_id = 2;
  fields.unk_id = 0;
  return fields;
}

TEST(GgufTokenizer, MergesByScoreAndOfEqualScoresAsTransformersOrdersThem) {
  const Tokenizer tokenizer(make_gguf_tokenizer_spec(scored_fields()));
  EXPECT_THAT(tokenizer.encode("ab"), ElementsAre(1, 4, 7));          // "ab" scores above "▁a"
  EXPECT_THAT(tokenizer.encode("bab"), ElementsAre(1, 4, 6, 7));      // "ab" has the lower id
  EXPECT_THAT(tokenizer.encode("a!z", false), ElementsAre(8, 3, 0));  // a byte token, and one that is missing
  EXPECT_THAT(tokenizer.encode("<s>"), ElementsAre(1, 1));
  EXPECT_THAT(tokenizer.encode("", true), ElementsAre(1));
  EXPECT_EQ(tokenizer.decode({1, 4, 7, 3}), "ab!");
  // The letters '<' and 's' are no tokens, but parts of "<s"; text never becomes the control token "<s>".
  EXPECT_THAT(tokenizer.encode("<s>", false, false), ElementsAre(4, 10, 11));
  EXPECT_THAT(tokenizer.encode("s", false), ElementsAre(4, 0));
}

TEST(GgufTokenizer, OfEqualScoresTheLongerLeftHalfMergesFirst) {
  GgufTokenizerFields fields;
  fields.model = "llama";
  fields.tokens = table({"<unk>", "x", "xx", "xxx", "y", "yx"});
  fields.token_type = {2, 1, 1, 1, 1, 1};
  fields.scores = {0, -9, -1, -2, -9, 0};
  fields.add_bos = false;
  fields.add_space_prefix = false;
  const Tokenizer tokenizer(make_gguf_tokenizer_spec(std::move(fields)));
  // "yx" first, then "xx", which leaves x-xx-x apart: from here "xx"+"x" is before "x"+"xx", though that is further
  // left.
  EXPECT_THAT(tokenizer.encode("yxxxx"), ElementsAre(5, 3));
  EXPECT_THAT(tokenizer.encode("xxx"), ElementsAre(3));
  EXPECT_THAT(tokenizer.encode("xxxx"), ElementsAre(2, 2));
}

TEST(Detokenizer, GivesInAllWhatDecodeGives) {
  GgufTokenizerFields fields = scored_fields();
  for (const char* byte : {"<0xE4>", "<0xBD>", "<0xA0>", "<0xFF>"}) {
    fields.tokens.push_back(byte);
    fields.token_type.push_back(6);
    fields.scores.push_back(0);
  }
  const Tokenizer tokenizer(make_gguf_tokenizer_spec(std::move(fields)));
  std::mt19937 random(9);
  for (int round = 0; round < 5000; ++round) {
    std::vector<int> ids(1 + random() % 12);
    for (int& id : ids) id = random() % 3 == 0 ? static_cast<int>(random() % 16) : static_cast<int>(12 + random() % 4);
    Detokenizer stream(tokenizer);
    std::string text;
    for (const int id : ids) text += stream.push(id);
    text += stream.finish();
    ASSERT_EQ(text, tokenizer.decode(ids)) << testing::PrintToString(ids);
  }
}

TEST(GgufTokenizer, RefusesFieldsThatDisagree) {
  const auto kind_of = [](auto change) {
    GgufTokenizerFields fields = scored_fields();
    change(fields);
    try {
      const Tokenizer tokenizer(make_gguf_tokenizer_spec(std::move(fields)));
    } catch (const Error& e) {
      return e.kind();
    }
    return ErrorKind::bug;
  };
  EXPECT_EQ(kind_of([](auto& f) { f.model = "t5"; }), ErrorKind::unsupported);
  EXPECT_EQ(kind_of([](auto& f) { f.model = "gpt2", f.pre = "tekken", f.merges = table({"a b"}); }),
            ErrorKind::unsupported);
  EXPECT_EQ(kind_of([](auto& f) { f.scores.pop_back(); }), ErrorKind::bad_input);
  EXPECT_EQ(kind_of([](auto& f) { f.scores[3] = std::nanf(""); }), ErrorKind::bad_input);
  EXPECT_EQ(kind_of([](auto& f) { f.token_type.pop_back(); }), ErrorKind::bad_input);
  EXPECT_EQ(kind_of([](auto& f) { f.token_type[0] = 9; }), ErrorKind::bad_input);
  EXPECT_EQ(kind_of([](auto& f) { f.bos_id = 12; }), ErrorKind::bad_input);
  EXPECT_EQ(kind_of([](auto& f) { f.bos_id.reset(); }), ErrorKind::bad_input);
  EXPECT_EQ(kind_of([](auto& f) { f.tokens.push_back("\xE2\x96"), f.scores.push_back(0), f.token_type.push_back(1); }),
            ErrorKind::bad_input);
  EXPECT_EQ(kind_of([](auto& f) { f.tokens.push_back("ab"), f.scores.push_back(0), f.token_type.push_back(1); }),
            ErrorKind::bad_input);
}

TEST(GgufTokenizer, ReadsByteLevelFields) {
  GgufTokenizerFields fields;
  fields.model = "gpt2";
  fields.pre = "smollm";
  fields.tokens = table({"<|x|>", "1", "2", "\xC4\xA0", "a",
                         "\xC4\xA0"
                         "a",
                         "12", "<u>"});
  fields.token_type = {3, 1, 1, 1, 1, 1, 1, 4};
  fields.merges = table({"\xC4\xA0 a", "1 2"});
  const Tokenizer tokenizer(make_gguf_tokenizer_spec(std::move(fields)));
  EXPECT_THAT(tokenizer.encode("12 a<|x|><u>"), ElementsAre(1, 2, 5, 0, 7));  // digits singly
  EXPECT_EQ(tokenizer.decode({5, 0, 7}), " a<u>");
  EXPECT_TRUE(tokenizer.is_special(0));
  EXPECT_FALSE(tokenizer.is_special(7));
}

}  // namespace
}  // namespace firstlight
