// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/manifest.h"

#include <gmock/gmock.h>

#include <fstream>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/ckpt/shard_testing.h"

namespace firstlight {
namespace {

using namespace testing_shard;
using ::testing::HasSubstr;

const std::string& real_json() {
  static const std::string json = [] {
    const ScratchDirectory scratch;
    const MemorySource source(family("llama").config);
    shard(source, scratch.path(), small_options({1, 2}));
    return read_text(scratch.path() / "manifest.json");
  }();
  return json;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

void expect_refused(const std::string& json, const std::string& message, ErrorKind kind = ErrorKind::bad_input) {
  try {
    parse_manifest(json, "m.json");
    ADD_FAILURE() << "accepted; expected: " << message;
  } catch (const Error& e) {
    EXPECT_EQ(to_string(e.kind()), to_string(kind)) << e.what();
    EXPECT_THAT(e.what(), ::testing::AllOf(HasSubstr(message), HasSubstr("m.json")));
  }
}

TEST(Manifest, ParsedAndWrittenAgainItIsTheSameText) {
  EXPECT_EQ(to_json(parse_manifest(real_json(), "m.json")), real_json());
}

TEST(Manifest, AnyCutIsRefused) {
  for (size_t n = 0; n + 2 < real_json().size(); n += 1 + n / 64) {
    EXPECT_THROW(parse_manifest(real_json().substr(0, n), "m.json"), Error) << n;
  }
}

TEST(Manifest, AnUnknownVersionIsUnsupportedAndNotMalformed) {
  expect_refused(replaced(real_json(), "\"firstlight_rank_checkpoint\": 1", "\"firstlight_rank_checkpoint\": 2"),
                 "version 2", ErrorKind::unsupported);
}

TEST(Manifest, WhatIsNotExactlyVersionOneIsRefusedByName) {
  const std::string& json = real_json();
  const Manifest m = parse_manifest(json, "m.json");
  const std::string part = m.tps[0].ranks[0].parts[0].file;
  expect_refused("[]", "not a JSON object");
  expect_refused(json + '\0', "NUL byte");
  expect_refused(std::string(100'000, '['), "nested");
  expect_refused("{}", "no 'firstlight_rank_checkpoint'");
  expect_refused(replaced(json, "\"architecture\"", "\"architektur\""), "architektur");
  expect_refused(replaced(json, "\"dtype\": \"source\"", "\"dtype\": \"int3\""), "int3");
  expect_refused(replaced(json, "\"shape\": [259, 96]", "\"shape\": [259, -96]"), "dimension");
  expect_refused(replaced(json, "\"shape\": [259, 96]", "\"shape\": [259, 96.5]"), "dimension");
  expect_refused(replaced(json, "\"shape\": [259, 96]", "\"shape\": [0, 96]"), "overflows");
  expect_refused(replaced(json, "\"shape\": [259, 96]", "\"shape\": [1152921504606846976, 1152921504606846976]"),
                 "overflows");
  expect_refused(replaced(json, "\"shape\": [259, 96]", "\"shape\": [1, 2, 3]"), "3 dimensions");
  expect_refused(replaced(json, "\"dtype\": \"BF16\"", "\"dtype\": \"I8\""), "I8");
  expect_refused(replaced(json, "\"slice\": \"vocab_rows\"", "\"slice\": \"diagonal\""), "diagonal");
  expect_refused(replaced(json, "model.norm.weight", "lm_head.weight"), "stands twice");
  expect_refused(replaced(json, "\"tp\": 2", "\"tp\": 1"), "out of order");
  expect_refused(replaced(json, "\"tp\": 2", "\"tp\": 3"), "has 2 ranks");
  expect_refused(replaced(json, "\"directory\": \"tp2/rank-01\"", "\"directory\": \"tp2/../x\""),
                 "expected 'tp2/rank-01'");
  expect_refused(replaced(json, "\"file\": \"" + part, "\"file\": \"/etc/passwd"), "should be");
  expect_refused(replaced(json, "\"first_leaf\": 0", "\"first_leaf\": 1"), "first_leaf");
  expect_refused(replaced(json, "\"data_bytes\": ", "\"data_bytes\": 1"), "");
  expect_refused(replaced(json, "\"data_bytes\": ", "\"data_bytes\": 99999999999999999999"), "data_bytes");
  expect_refused(replaced(json, "\"tail_begin\": ", "\"tail_begin\": 1"), "");
  expect_refused(replaced(json, "\"config.json\": {", "\"../config.json\": {"), "not a plain relative name");
  expect_refused(replaced(json, "\"config.json\": {", "\"/config.json\": {"), "not a plain relative name");
  expect_refused(replaced(json, "\"config.json\": {", "\"a/./b\": {"), "not a plain relative name");
  expect_refused(replaced(json, "\"config.json\": {", "\"a//b\": {"), "not a plain relative name");
  expect_refused(replaced(json, "\"config.json\": {", "\"\": {"), "not a plain relative name");
  expect_refused(replaced(json, "\"config.json\": {", "\"READY\": {"), "READY");
  expect_refused(replaced(json, "\"tokenizer.json\": {", "\"config.json\": {"), "stands twice");
  expect_refused(replaced(json, "\"tp2/rank-01/leaves.xxh3\": {", "\"tp2/rank-01/leaves\": {"), "leaves.xxh3");
  expect_refused(replaced(json, "\"xxh3_128\": \"", "\"xxh3_128\": \"G"), "32 lower-case");
}

struct Stored {
  MemorySource source{family("llama").config};
  ScratchDirectory scratch;
  Manifest manifest;
  Stored() {
    shard(source, scratch.path(), small_options({1}));
    manifest = read_manifest(scratch.path());
  }
};

TEST(Manifest, ReadyHoldsTheHashOfTheManifest) {
  const Stored s;
  const std::string json = read_text(s.scratch.path() / "manifest.json");
  EXPECT_EQ(read_text(s.scratch.path() / "READY"), xxh3_128_hex(std::as_bytes(std::span(json))) + "\n");
}

TEST(Manifest, WithoutReadyOrWithAnotherHashNothingIsRead) {
  const Stored s;
  const fs::path& out = s.scratch.path();
  const auto kind = [&] {
    try {
      read_manifest(out);
    } catch (const Error& e) {
      return e.kind();
    }
    return ErrorKind::bug;
  };
  std::ofstream(out / "manifest.json", std::ios::app) << ' ';
  EXPECT_EQ(kind(), ErrorKind::damaged);
  fs::remove(out / "READY");
  EXPECT_EQ(kind(), ErrorKind::not_found);
}

TEST(Manifest, ADamagedReadyIsNotBlamedOnTheManifest) {
  const Stored s;
  const fs::path ready = s.scratch.path() / "READY";
  const auto words = [&](const std::string& content) -> std::string {
    std::ofstream(ready, std::ios::trunc) << content;
    try {
      read_manifest(s.scratch.path());
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::damaged);
      return e.what();
    }
    return "";
  };
  const std::string good = read_text(ready);
  for (const std::string& bad : {good + " ", good.substr(0, 32), "g" + good.substr(1), std::string()})
    EXPECT_THAT(words(bad), testing::AllOf(HasSubstr("READY' is damaged"), testing::Not(HasSubstr("manifest.json"))))
        << bad;
  EXPECT_THAT(words(std::string(32, '0') + "\n"), HasSubstr("one of the two is damaged"));
}

TEST(Manifest, ALinkInThePlaceOfReadyOrOfTheManifestIsRefusedThoughWhatItNamesIsRight) {
  for (const char* name : {"READY", "manifest.json"}) {
    const Stored s;
    const fs::path &out = s.scratch.path(), elsewhere = out / "elsewhere";
    fs::rename(out / name, elsewhere);
    fs::create_symlink(elsewhere, out / name);
    try {
      read_manifest(out);
      ADD_FAILURE() << name << " was followed";
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::damaged);
      EXPECT_THAT(e.what(), testing::AllOf(HasSubstr(name), HasSubstr("symbolic link")));
    }
  }
}

TEST(Manifest, OnlyListedPlainFilesOfTheRightSizeAndHashAreRead) {
  const Stored s;
  const fs::path& out = s.scratch.path();
  const auto error = [&](const std::string& name, ErrorKind kind) -> std::string {
    try {
      read_listed(out, s.manifest, name);
    } catch (const Error& e) {
      EXPECT_EQ(to_string(e.kind()), to_string(kind)) << e.what();
      return e.what();
    }
    ADD_FAILURE() << name << " was read";
    return "";
  };
  EXPECT_EQ(read_listed(out, s.manifest, "tokenizer.json"), "{\"version\": \"1.0\"}\n");
  EXPECT_THAT(error("../etc/passwd", ErrorKind::not_found), HasSubstr("not in the manifest"));
  EXPECT_THAT(error("READY", ErrorKind::not_found), HasSubstr("not in the manifest"));
  std::ofstream(out / "tokenizer.json") << "{\"version\": \"1.1\"}\n";
  EXPECT_THAT(error("tokenizer.json", ErrorKind::damaged), HasSubstr("XXH3-128"));
  std::ofstream(out / "tokenizer.json") << "{}";
  EXPECT_THAT(error("tokenizer.json", ErrorKind::damaged), HasSubstr("2 bytes"));
  fs::remove(out / "tokenizer.json");
  EXPECT_THAT(error("tokenizer.json", ErrorKind::not_found), HasSubstr("missing"));
  fs::create_directory(out / "tokenizer.json");
  EXPECT_THAT(error("tokenizer.json", ErrorKind::damaged), HasSubstr("not a plain file"));
  fs::rename(out / "tp1", out / "elsewhere");
  fs::create_directory_symlink(out / "elsewhere", out / "tp1");
  EXPECT_THAT(error("tp1/rank-00/config.json", ErrorKind::damaged), HasSubstr("not a plain directory"));
}

}  // namespace
}  // namespace firstlight
