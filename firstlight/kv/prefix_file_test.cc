// SPDX-License-Identifier: Apache-2.0
// Prefix files: what was written comes back to the byte, in other pages; whatever is wrong with a file is refused in
// words before a byte of it is used.
#include "firstlight/kv/prefix_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <functional>
#include <tuple>

#include "firstlight/base/hash.h"
#include "firstlight/io/fault_read.h"
#include "firstlight/io/pread_reader.h"
#include "firstlight/io/reader_choice.h"
#include "firstlight/io/ring.h"
#include "firstlight/kv/prefix_testing.h"

namespace firstlight {
namespace {

using testing::HasSubstr;

/// The message of what fn throws, which must be of this kind.
std::string refusal(ErrorKind kind, const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.kind()), to_string(kind)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown, expected " << to_string(kind);
  return {};
}

void read_into(const fs::path& path, FakeCache& cache) {
  ReadLane lane = lane_of(std::make_unique<PreadReader>(2));
  read_prefix(PrefixFile(path), lane, cache.ranks, cache.table);
}

class PrefixKinds : public testing::TestWithParam<std::tuple<KvKind, int, int>> {};

TEST_P(PrefixKinds, ComeBackToTheByteInOtherPages) {
  const auto [kind, n_pages, tp] = GetParam();
  const Folder folder;
  const PrefixInfo info = prefix_info(kind, n_pages, tp);
  const FakeCache from(info, 1, /*filled=*/true);
  const uint64_t size = write_prefix(folder / "p", info, from.ranks, from.table);
  EXPECT_EQ(size, fs::file_size(folder / "p"));
  EXPECT_FALSE(fs::exists(folder / "p.partial"));
  FakeCache to(info, 2, /*filled=*/false);
  ASSERT_NE(to.table.pages(), from.table.pages());
  read_into(folder / "p", to);
  EXPECT_TRUE(to.content(info) == from.content(info));
  const PrefixInfo found = PrefixFile(folder / "p").info();
  EXPECT_EQ(found.tokens, info.tokens);
  EXPECT_EQ(found.computed_by, info.computed_by);
  EXPECT_NO_THROW(require_same_cache(found, info, "p"));
}

INSTANTIATE_TEST_SUITE_P(All, PrefixKinds,
                         testing::Combine(testing::Values(KvKind::f32, KvKind::bf16, KvKind::tq8, KvKind::tq4,
                                                          KvKind::k3v2),
                                          testing::Values(1, 2, 4, 9), testing::Values(1, 2, 4)));

TEST(PrefixFile, IsReadByIoUringToo) {
  if (!why_no_io_uring().empty()) GTEST_SKIP() << why_no_io_uring();
  const Folder folder;
  const PrefixInfo info = prefix_info(KvKind::tq4, 9, 2);
  const FakeCache from(info, 1, true);
  write_prefix(folder / "p", info, from.ranks, from.table);
  FakeCache to(info, 2, false);
  ReadLane lane = lane_of(make_reader({ReaderKind::io_uring, "test"}, 2));
  read_prefix(PrefixFile(folder / "p"), lane, to.ranks, to.table);
  EXPECT_TRUE(to.content(info) == from.content(info));
}

uint64_t little(const std::string& bytes, size_t at, size_t n) {
  uint64_t value = 0;
  for (size_t i = n; i > 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[at + i - 1]);
  return value;
}

/// docs/prefix.md, field by field.
TEST(PrefixFile, LiesAsTheFormatSays) {
  const Folder folder;
  const PrefixInfo info = prefix_info(KvKind::tq4, 5, 2);
  const FakeCache cache(info, 3, true);
  write_prefix(folder / "p", info, cache.ranks, cache.table);
  const std::string file = bytes_of(folder / "p");
  EXPECT_EQ(file.substr(0, 8), "FLPREFIX");
  EXPECT_EQ(little(file, 8, 4), 1u);
  EXPECT_EQ(little(file, 16, 8), 4096u);
  EXPECT_EQ(little(file, 24, 8), file.size());
  EXPECT_EQ(little(file, 32, 8), 320u);
  EXPECT_EQ(file.substr(40, 8), std::string("tq4\0\0\0\0\0", 8));
  EXPECT_EQ(little(file, 48, 4), 2u);   // tp
  EXPECT_EQ(little(file, 52, 4), 3u);   // layers
  EXPECT_EQ(little(file, 56, 4), 2u);   // key/value heads
  EXPECT_EQ(little(file, 60, 4), 64u);  // head_dim
  EXPECT_EQ(little(file, 64, 4), 64u);  // tokens of a page
  EXPECT_EQ(file.substr(72, 4), "FLTQ");
  EXPECT_EQ(little(file, 256 + 4 * 7, 4), static_cast<uint64_t>(info.tokens[7]));
  // A page of one rank: 3 layers, 1 head, 64 tokens of 68 bytes; in bf16 of 256.
  const uint64_t page = 3 * 64 * 68, exact = 3 * 64 * 256;
  const auto up = [](uint64_t n) { return (n + 4095) / 4096 * 4096; };
  const uint64_t rank = up(5 * page) + up(4 * exact);
  ASSERT_EQ(file.size(), 4096 + 2 * rank);
  const auto same = [&](uint64_t at, const std::byte* bytes, uint64_t size, size_t hash) {
    EXPECT_EQ(std::memcmp(file.data() + at, bytes, size), 0) << "at " << at;
    EXPECT_EQ(little(file, 256 + 4 * 320 + 8 * hash, 8), xxh3_64({bytes, size})) << "hash " << hash;
  };
  const auto of = [](const std::byte* base, int32_t number, uint64_t size) {
    return base + static_cast<uint64_t>(number) * size;
  };
  same(4096 + 2 * page, of(cache.ranks[0].pages, cache.table.pages()[2], page), page, 2);
  same(4096 + rank + 4 * page, of(cache.ranks[1].pages, cache.table.pages()[4], page), page, 9);
  // Exact pages are those of pages 0, 2, 3, 4.
  same(4096 + up(5 * page), of(cache.ranks[0].exact, cache.table.exact()[0], exact), exact, 10);
  same(4096 + rank + up(5 * page) + exact, of(cache.ranks[1].exact, cache.table.exact()[2], exact), exact, 15);
}

/// Heads that tools/make_prefix_seeds.py wrote, without hash and end.
TEST(PrefixFile, HeadsOfAnotherWriterAreUnderstood) {
  const auto parsed = [](const std::string& name) {
    std::string bytes = bytes_of(fs::path(FIRSTLIGHT_TESTDATA) / "../fuzz/corpus/prefix_head" / name);
    bytes.resize((bytes.size() + 4095) / 4096 * 4096);
    const uint64_t hash = prefix_head_hash(std::as_bytes(std::span(bytes)));
    std::memcpy(bytes.data() + kPrefixHashAt, &hash, sizeof hash);
    return parse_prefix_head(std::as_bytes(std::span(bytes)), little(bytes, 24, 8), name);
  };
  const PrefixHead tq4 = parsed("tq4_tp2");
  EXPECT_EQ(tq4.info.kind, KvKind::tq4);
  EXPECT_EQ(tq4.info.tp, 2);
  EXPECT_EQ(tq4.info.tokens.size(), 384u);
  EXPECT_EQ(tq4.info.tokens[383], 383);
  EXPECT_EQ(tq4.info.model, "xxh3:00112233");
  EXPECT_EQ(tq4.page_hash(1, 5), 12u);
  EXPECT_EQ(tq4.exact_hash(1, 3), 20u);
  EXPECT_EQ(parsed("k3v2").info.head_dim, 128);
  EXPECT_EQ(parsed("f32_tp4").page_hash(3, 1), 8u);
  EXPECT_EQ(parsed("bf16").info.n_exact(), 0);
}

/// A file, and what reading a changed copy of it gives.
struct Damage {
  explicit Damage(KvKind kind = KvKind::tq4, int n_pages = 5, int tp = 2) : info(prefix_info(kind, n_pages, tp)) {
    const FakeCache cache(info, 1, true);
    write_prefix(folder / "p", info, cache.ranks, cache.table);
    file = bytes_of(folder / "p");
  }
  std::string refused(ErrorKind kind, const std::string& bytes) {
    put_bytes(folder / "q", bytes);
    FakeCache cache(info, 2, false);
    const std::string what = refusal(kind, [&] { read_into(folder / "q", cache); });
    EXPECT_THAT(what, HasSubstr("/q'"));
    return what;
  }
  /// With bytes of the head changed and its hash made right: what a writer of nonsense would do.
  std::string rewritten(const std::function<void(std::string&)>& change) {
    std::string bytes = file;
    change(bytes);
    const auto head = std::as_bytes(std::span(bytes)).first(std::min<size_t>(bytes.size(), 4096));
    const uint64_t hash = prefix_head_hash(head);
    std::memcpy(bytes.data() + kPrefixHashAt, &hash, sizeof hash);
    return bytes;
  }
  Folder folder;
  PrefixInfo info;
  std::string file;
};

TEST(PrefixFile, AFlippedBitAnywhereIsFound) {
  Damage damage;
  std::mt19937 random(4);
  const auto flipped = [&](size_t at) {
    std::string bytes = damage.file;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
    return bytes;
  };
  for (size_t at = 0; at < 4096; at += 1 + random() % 17) {
    put_bytes(damage.folder / "q", flipped(at));
    EXPECT_THROW(PrefixFile(damage.folder / "q"), Error) << "byte " << at;
  }
  for (int i = 0; i < 100; ++i) {
    const size_t at = 4096 + random() % (damage.file.size() - 4096);
    EXPECT_THAT(damage.refused(ErrorKind::damaged, flipped(at)), HasSubstr("bytes [")) << "byte " << at;
  }
}

TEST(PrefixFile, DamageNamesRangeRankAndTokens) {
  Damage damage;
  std::string bytes = damage.file;
  const uint64_t page = 3 * 64 * 68;
  bytes[4096 + 2 * page + 100] ^= 1;
  const std::string what = damage.refused(ErrorKind::damaged, bytes);
  EXPECT_THAT(what, HasSubstr("bytes [30208, 43264) (rank 0, tokens 128 to 191)"));
}

TEST(PrefixFile, OneThatWasCutOrHasMoreIsRefused) {
  Damage damage;
  for (const size_t n : {damage.file.size() - 1, damage.file.size() - 4096, size_t{5000}, size_t{4096}, size_t{4095}})
    damage.refused(ErrorKind::damaged, damage.file.substr(0, n));
  EXPECT_THAT(damage.refused(ErrorKind::damaged, damage.file.substr(0, 8192)), HasSubstr("it was cut"));
  damage.refused(ErrorKind::damaged, damage.file + std::string(4096, '\0'));
  damage.refused(ErrorKind::bad_input, damage.file.substr(0, 255));
  damage.refused(ErrorKind::bad_input, "");
}

TEST(PrefixFile, AnotherTypeOrVersionIsRefused) {
  Damage damage;
  EXPECT_THAT(damage.refused(ErrorKind::bad_input, "GGUF" + std::string(8192, '\0')), HasSubstr("no prefix file"));
  EXPECT_THAT(damage.refused(ErrorKind::unsupported, damage.rewritten([](std::string& b) { b[8] = 2; })),
              HasSubstr("version 2"));
  FakeCache cache(damage.info, 2, false);
  EXPECT_THAT(refusal(ErrorKind::not_found, [&] { read_into(damage.folder / "none", cache); }), HasSubstr("/none"));
  EXPECT_THAT(refusal(ErrorKind::bad_input, [&] { read_into(damage.folder / ".", cache); }), HasSubstr("directory"));
}

TEST(PrefixFile, NonsenseWithARightHashIsRefused) {
  Damage damage;
  const auto put = [](size_t at, size_t n, uint64_t value) {
    return [=](std::string& bytes) { std::memcpy(bytes.data() + at, &value, n); };
  };
  const auto bad = [&](size_t at, size_t n, uint64_t value) {
    return damage.refused(ErrorKind::bad_input, damage.rewritten(put(at, n, value)));
  };
  for (const size_t at : {48, 52, 56, 60}) {  // tp, layers, heads, head_dim
    bad(at, 4, 0);
    bad(at, 4, UINT32_MAX);
    bad(at, 4, 1025);
  }
  for (const uint64_t n_tokens : {uint64_t{0}, uint64_t{63}, uint64_t{384}, uint64_t{1} << 24, UINT64_MAX})
    bad(32, 8, n_tokens);
  bad(24, 8, damage.file.size() + 4096);
  bad(256, 4, UINT32_MAX);  // a token
  bad(104, 1, 0x80);        // the model's name
  bad(104, 1, 0);
  bad(12, 4, 1);  // where nothing stands
  bad(4090, 1, 1);
  damage.refused(ErrorKind::unsupported, damage.rewritten(put(40, 8, 0x383866)));  // a kind "f88"
  damage.refused(ErrorKind::unsupported, damage.rewritten(put(64, 4, 32)));
  damage.refused(ErrorKind::unsupported, damage.rewritten(put(76, 4, 9)));   // version of the codes' format
  damage.refused(ErrorKind::unsupported, damage.rewritten(put(60, 4, 80)));  // a head_dim that codes do not come in
  for (const uint64_t head : {uint64_t{0}, uint64_t{4097}, uint64_t{1} << 40, UINT64_MAX - 4095})
    damage.refused(ErrorKind::damaged, damage.rewritten(put(16, 8, head)));
}

TEST(PrefixFile, AFileThatEndsOrFailsWhileItIsReadIsRefused) {
  Damage damage;
  const auto with = [&](Fault fault, ErrorKind kind) {
    FakeCache cache(damage.info, 2, false);
    ReadLane lane = lane_of(make_faulty_reader(std::make_shared<FaultyRead>(std::vector<Fault>{fault}), 2));
    const PrefixFile file(damage.folder / "p");
    return refusal(kind, [&] { read_prefix(file, lane, cache.ranks, cache.table); });
  };
  EXPECT_THAT(with({.kind = Fault::Kind::flip, .amount = 5000}, ErrorKind::damaged), HasSubstr("XXH3-64"));
  EXPECT_THAT(with({.kind = Fault::Kind::end_of_file, .amount = 60000}, ErrorKind::damaged), HasSubstr("ends before"));
  EXPECT_THAT(with({.kind = Fault::Kind::error, .amount = EIO}, ErrorKind::io), HasSubstr("bytes ["));
}

TEST(PrefixFile, AnInterruptEndsBothWays) {
  Damage damage;
  std::stop_source stop;
  stop.request_stop();
  FakeCache cache(damage.info, 2, false);
  ReadLane lane = lane_of(std::make_unique<PreadReader>(1));
  EXPECT_THROW(read_prefix(PrefixFile(damage.folder / "p"), lane, cache.ranks, cache.table, stop.get_token()),
               Interrupted);
  EXPECT_THROW(write_prefix(damage.folder / "w", damage.info, cache.ranks, cache.table, stop.get_token()), Interrupted);
  EXPECT_FALSE(fs::exists(damage.folder / "w"));
  EXPECT_FALSE(fs::exists(damage.folder / "w.partial"));
}

/// A file that may not grow is what a full disk is: no room for it, or, where room is not reserved, a write that fails.
TEST(PrefixFile, AFullDiskIsSaidAndNothingIsLeft) {
  const Damage damage;
  const FakeCache cache(damage.info, 1, true);
  struct rlimit before {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small { 64u << 10, before.rlim_max };
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto save = [&] { write_prefix(damage.folder / "w", damage.info, cache.ranks, cache.table); };
  const std::string what = refusal(ErrorKind::io, save);
  setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, handler);
  EXPECT_THAT(what, HasSubstr("/w.partial"));
  EXPECT_THAT(what, HasSubstr("File too large"));
  EXPECT_FALSE(fs::exists(damage.folder / "w"));
  EXPECT_FALSE(fs::exists(damage.folder / "w.partial"));
  EXPECT_NO_THROW(save());
  EXPECT_TRUE(bytes_of(damage.folder / "w") == damage.file);
}

/// Many runs of many threads, the last of a section short.
TEST(PrefixFile, LargePagesComeBackToTheByte) {
  for (const KvKind kind : {KvKind::bf16, KvKind::tq4}) {
    const Folder folder;
    PrefixInfo info = prefix_info(kind, 11, 2);
    info.n_layers = 100;
    const FakeCache from(info, 1, true);
    write_prefix(folder / "p", info, from.ranks, from.table);
    FakeCache to(info, 2, false);
    read_into(folder / "p", to);
    EXPECT_TRUE(to.content(info) == from.content(info));
  }
}

TEST(PrefixFile, ReplacesOnlyItsLike) {
  Damage damage;
  FakeCache cache(damage.info, 7, true);
  put_bytes(damage.folder / "notes.txt", "not to be lost");
  EXPECT_THAT(refusal(ErrorKind::bad_input,
                      [&] { write_prefix(damage.folder / "notes.txt", damage.info, cache.ranks, cache.table); }),
              HasSubstr("not overwritten"));
  EXPECT_EQ(bytes_of(damage.folder / "notes.txt"), "not to be lost");
  put_bytes(damage.folder / "p", damage.rewritten([](std::string& b) { b[8] = 9; }));  // of a later version
  write_prefix(damage.folder / "p", damage.info, cache.ranks, cache.table);
  FakeCache to(damage.info, 8, false);
  read_into(damage.folder / "p", to);
  EXPECT_TRUE(to.content(damage.info) == cache.content(damage.info));
  refusal(ErrorKind::not_found, [&] { write_prefix(damage.folder / "no/p", damage.info, cache.ranks, cache.table); });
}

TEST(PrefixInfo, AnotherCacheIsRefusedByName) {
  const PrefixInfo info = prefix_info(KvKind::tq4, 1);
  const auto refused = [&](const std::function<void(PrefixInfo&)>& change, std::string_view field) {
    PrefixInfo other = info;
    change(other);
    const std::string what = refusal(ErrorKind::bad_input, [&] { require_same_cache(other, info, "p"); });
    EXPECT_THAT(what, HasSubstr(std::string(field)));
    EXPECT_THAT(what, HasSubstr("'p'"));
  };
  refused([](PrefixInfo& i) { i.model = "xxh3:1"; }, "model is xxh3:1, expected xxh3:0123");
  refused([](PrefixInfo& i) { i.n_layers = 4; }, "layers is 4, expected 3");
  refused([](PrefixInfo& i) { i.n_kv_heads = 4; }, "heads is 4");
  refused([](PrefixInfo& i) { i.head_dim = 128; }, "head_dim is 128");
  refused([](PrefixInfo& i) { i.kind = KvKind::tq8; }, "tq8, expected tq4");
  refused([](PrefixInfo& i) { i.tp = 2; }, "tp is 2");
  refused([](PrefixInfo& i) { i.seed = 2; }, "seed of codes is 2");
  refused([](PrefixInfo& i) { i.centring = 3; }, "centring of codes is 3");
  PrefixInfo same = info;
  same.computed_by = "other";
  same.tokens.clear();
  EXPECT_NO_THROW(require_same_cache(same, info, "p"));
}

TEST(PrefixInfo, APromptThatDoesNotBeginWithItIsRefusedAtTheToken) {
  const PrefixInfo info = prefix_info(KvKind::bf16, 2);
  std::vector<int> prompt = info.tokens;
  EXPECT_NO_THROW(require_begins_with(prompt, info, "p"));
  prompt.push_back(7);
  EXPECT_NO_THROW(require_begins_with(prompt, info, "p"));
  prompt[100] = 1;
  const std::string what = refusal(ErrorKind::bad_input, [&] { require_begins_with(prompt, info, "p"); });
  EXPECT_THAT(what, HasSubstr("token 100 is 1, the prefix of 128 tokens has 3705"));
  prompt = info.tokens;
  prompt.resize(100);
  EXPECT_THAT(refusal(ErrorKind::bad_input, [&] { require_begins_with(prompt, info, "p"); }),
              HasSubstr("the prompt has its first 100 only"));
}

}  // namespace
}  // namespace firstlight
