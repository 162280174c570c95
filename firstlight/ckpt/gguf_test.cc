// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/gguf.h"

#include "firstlight/ckpt/source_test_util.h"

namespace firstlight {
namespace {

using testing_util::bytes_of;
using testing_util::expect_error;
using testing_util::GgufText;
using testing_util::TempDir;

constexpr uint32_t kU8 = 0, kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kString = 8, kArray = 9, kU64 = 10;
constexpr uint32_t kTypeF32 = 0, kTypeQ4_0 = 2;

void refuse(const GgufText& gguf, std::string_view part, ErrorKind kind = ErrorKind::bad_input) {
  const std::string file = gguf.file();
  const std::string what = expect_error(kind, part, [&] { parse_gguf_header(file, file.size(), "f.gguf"); });
  EXPECT_NE(what.find("f.gguf"), std::string::npos) << what;
}
std::string array_of(uint32_t type, uint64_t count, std::string_view raw) {
  return bytes_of(type) + bytes_of(count) + std::string(raw);
}

/// One lawful tensor of 8 f32.
GgufText good() {
  GgufText g;
  g.key("a", kU32, bytes_of(7u)).tensor("t", {8}, kTypeF32, 0);
  g.data.assign(32, 'x');
  return g;
}

TEST(Gguf, ReadsValuesOfEveryType) {
  GgufText g;
  g.key("u8", kU8, "\xff").key("i32", kI32, bytes_of(-5)).key("f32", kF32, bytes_of(0.25f)).key("yes", kBool, "\x01");
  g.key("text", kString, GgufText::text("é"))
      .key("u64", kU64, bytes_of(~0ull))
      .key("f64", 12, bytes_of(1e100))
      .key("i8", 1, "\xfe");
  g.key("list", kArray, array_of(kI32, 2, bytes_of(-1) + bytes_of(2)));
  g.key("words", kArray, array_of(kString, 2, GgufText::text("x") + GgufText::text("")));
  g.key("floats", kArray, array_of(kF32, 1, bytes_of(1.5f)));
  g.key("nested", kArray, array_of(kArray, 2, array_of(kU8, 1, "a") + array_of(kU8, 0, "")));
  const std::string file = g.file();
  const auto header = parse_gguf_header(file, file.size(), "f");
  ASSERT_TRUE(header);
  const GgufMetadata& m = header->metadata;
  EXPECT_EQ(m.integer("u8"), 255);
  EXPECT_EQ(m.integer("i8"), -2);
  EXPECT_EQ(m.integer("i32"), -5);
  EXPECT_EQ(m.number("f32"), 0.25);
  EXPECT_EQ(m.number("f64"), 1e100);
  EXPECT_EQ(m.number("i32"), -5.0);
  EXPECT_EQ(m.boolean("yes"), true);
  EXPECT_EQ(m.text("text"), "é");
  EXPECT_EQ(m.integers("list"), (std::vector<int64_t>{-1, 2}));
  EXPECT_EQ(*m.texts("words"), (std::vector<std::string_view>{"x", ""}));
  EXPECT_EQ(m.numbers("floats"), std::vector<float>{1.5f});
  EXPECT_EQ(m.find("nested")->count, 2u);
  EXPECT_EQ(m.integer("absent"), std::nullopt);
  EXPECT_EQ(m.entries().size(), 12u);
  EXPECT_EQ(m.entries()[4].key, "text");
  expect_error(ErrorKind::bad_input, "'u64' is u64", [&] { m.integer("u64"); });
  expect_error(ErrorKind::bad_input, "'text' is string, expected an integer", [&] { m.integer("text"); });
  expect_error(ErrorKind::bad_input, "'u8' is u8, expected a string", [&] { m.text("u8"); });
  expect_error(ErrorKind::bad_input, "'list' is array, expected an array of strings", [&] { m.texts("list"); });
  expect_error(ErrorKind::bad_input, "'words' is array, expected an array of integers", [&] { m.integers("words"); });
}

TEST(Gguf, GivesShapesOutermostFirstAndOffsetsInTheFile) {
  GgufText g = good();
  g.tensor("q", {32, 3}, kTypeQ4_0, 32);
  g.data.resize(32 + 3 * 18 + 10, 'x');  // padded to 32
  const std::string file = g.file();
  const auto header = parse_gguf_header(file, file.size(), "f");
  ASSERT_TRUE(header);
  EXPECT_EQ(header->tensors[1].shape, (std::vector<int64_t>{3, 32}));
  EXPECT_EQ(header->tensors[1].bytes, 54u);
  EXPECT_EQ(header->tensors[1].offset, header->data_begin + 32);
  EXPECT_EQ(header->tensors[1].type->name, "Q4_0");
}

TEST(Gguf, AsksForMoreBytesUntilTheHeaderIsWhole) {
  const std::string file = good().file();
  const size_t header_size = file.size() - 32;
  size_t needed = 0;
  for (size_t n = 0; n <= file.size(); ++n) {
    const bool whole = parse_gguf_header(std::string_view(file).substr(0, n), file.size(), "f").has_value();
    if (whole && needed == 0) needed = n;
    EXPECT_EQ(whole, needed != 0) << n;
  }
  EXPECT_GT(needed, 24u);
  EXPECT_LE(needed, header_size);
}

TEST(Gguf, RefusesAFileThatIsCutAnywhere) {
  const std::string file = good().file();
  for (size_t n = 0; n < file.size(); ++n) {
    expect_error(ErrorKind::bad_input, "f", [&] { parse_gguf_header(std::string_view(file).substr(0, n), n, "f"); });
  }
}

TEST(Gguf, RefusesOtherMagicVersionsAndByteOrders) {
  std::string file = good().file();
  file[0] = 'X';
  expect_error(ErrorKind::bad_input, "not a GGUF", [&] { parse_gguf_header(file, file.size(), "f"); });
  GgufText g = good();
  for (const uint32_t version : {0u, 1u, 4u}) {
    g.version = version;
    refuse(g, "version " + std::to_string(version), ErrorKind::unsupported);
  }
  g.version = 0x03000000;
  refuse(g, "big-endian", ErrorKind::unsupported);
  g.version = 2;
  EXPECT_TRUE(parse_gguf_header(g.file(), g.file().size(), "f"));
}

TEST(Gguf, RefusesCountsAndLengthsThatTheFileCannotHold) {
  GgufText g = good();
  g.n_tensors = ~0ull;
  refuse(g, "tensors are more than the file can hold");
  g = good();
  g.n_keys = 1ull << 40;
  refuse(g, "metadata keys are more than the file can hold");
  g = good();
  g.key("s", kString, bytes_of(~0ull) + "x");
  refuse(g, "expected at most");
  g = good();
  g.key("s", kString, bytes_of(1ull << 27) + "x");
  refuse(g, "passes the end");
  g = good();
  g.key("l", kArray, array_of(kU64, 1ull << 61, "x"));  // 8 × 2⁶¹ = 0 in 64 bits
  refuse(g, "passes the end");
  g = good();
  g.key("l", kArray, array_of(kString, 1ull << 62, "x"));
  refuse(g, "passes the end");
  g = good();
  g.key("l", kArray, array_of(kArray, ~0ull, "x"));
  refuse(g, "passes the end");
  g = good();
  g.keys += bytes_of(1ull << 63);  // a key's length
  ++g.n_keys;
  refuse(g, "expected at most 65535");
}

TEST(Gguf, RefusesDeepNestingUnknownTypesAndBadBooleans) {
  std::string nested = array_of(kU8, 1, "x");
  for (int i = 0; i < 4; ++i) nested = array_of(kArray, 1, nested);
  refuse(good().key("l", kArray, nested), "nested deeper than 4");
  refuse(good().key("l", 13, "xxxx"), "unknown value type 13");
  refuse(good().key("l", kArray, array_of(99, 1, "xxxxxxxxxxxxxxxx")), "unknown value type 99");
  refuse(good().key("l", kBool, "\x02"), "boolean is 2");
  refuse(good().key("l", kArray, array_of(kBool, 2, "\x01\xff")), "boolean is 255");
}

TEST(Gguf, RefusesDuplicatesEmptyNamesAndTextThatIsNotUtf8) {
  refuse(good().key("a", kU8, "x"), "'a' appears twice");
  GgufText g = good();
  g.tensor("t", {8}, kTypeF32, 32).data.resize(64);
  refuse(g, "tensor 't' appears twice");
  refuse(good().key("", kU8, "x"), "key is empty");
  refuse(good().key(std::string_view("k\0", 2), kU8, "x"), "NUL");
  refuse(good().key("\xff", kU8, "x"), "not UTF-8");
  refuse(good().key("s", kString, GgufText::text("\xed\xa0\x80")), "not UTF-8");
  refuse(good().key("s", kArray, array_of(kString, 1, GgufText::text("\xc0\xaf"))), "not UTF-8");
  refuse(GgufText().tensor("", {8}, kTypeF32, 0), "name is empty");
  refuse(GgufText().tensor("\x80", {8}, kTypeF32, 0), "not UTF-8");
}

TEST(Gguf, RefusesAlignmentsThatAreNoSanePowerOfTwo) {
  for (const uint32_t alignment : {0u, 1u, 4u, 24u, 0x80000000u, 0xffffffffu}) {
    refuse(good().key("general.alignment", kU32, bytes_of(alignment)), "expected a power of two");
  }
  refuse(good().key("general.alignment", kU64, bytes_of(uint64_t{32})), "expected u32");
  GgufText g;
  g.alignment = 4096;
  g.key("general.alignment", kU32, bytes_of(4096u)).tensor("t", {8}, kTypeF32, 0).data.assign(32, 'x');
  EXPECT_EQ(parse_gguf_header(g.file(), g.file().size(), "f")->data_begin, 4096u);
}

TEST(Gguf, RefusesImpossibleShapes) {
  refuse(GgufText().tensor("t", {}, kTypeF32, 0), "0 dimensions");
  refuse(GgufText().tensor("t", {1, 1, 1, 1, 1}, kTypeF32, 0), "5 dimensions");
  refuse(GgufText().tensor("t", {1, 1, 1, 1, 1, 1, 1, 1, 1}, kTypeF32, 0), "9 dimensions");
  refuse(GgufText().tensor("t", {8, 0}, kTypeF32, 0), "a dimension is 0");
  refuse(GgufText().tensor("t", {1ull << 32, 1ull << 32}, kTypeF32, 0), "elements");
  refuse(GgufText().tensor("t", {1ull << 63}, kTypeF32, 0), "elements");
  refuse(GgufText().tensor("t", {~0ull, ~0ull, ~0ull}, kTypeF32, 0), "elements");
  refuse(GgufText().tensor("t", {33}, kTypeQ4_0, 0), "no whole blocks");
  refuse(GgufText().tensor("t", {16, 2}, kTypeQ4_0, 0), "no whole blocks");
  refuse(GgufText().tensor("t", {8}, 4, 0), "tensor type 4 is not known", ErrorKind::unsupported);
  refuse(GgufText().tensor("t", {8}, 0xffffffff, 0), "is not known", ErrorKind::unsupported);
}

TEST(Gguf, RefusesOffsetsThatDoNotTileTheData) {
  const auto two = [](uint64_t a, uint64_t b, size_t bytes) {
    GgufText g;
    g.tensor("a", {8}, kTypeF32, a).tensor("b", {8}, kTypeF32, b).data.assign(bytes, 'x');
    return g;
  };
  EXPECT_TRUE(parse_gguf_header(two(32, 0, 64).file(), two(32, 0, 64).file().size(), "f"));  // any order
  refuse(two(0, 0, 64), "overlaps");
  refuse(two(0, 16, 64), "not aligned");
  refuse(two(0, 64, 96), "hole");
  refuse(two(32, 64, 96), "hole");
  refuse(two(0, 32, 63), "passes the end");
  refuse(two(0, ~31ull, 64), "hole");
  refuse(two(0, 32, 65), "follow the last tensor");
  GgufText g;
  g.tensor("a", {8, 1ull << 50}, kTypeF32, 0).data.assign(32, 'x');
  refuse(g, "passes the end");
}

std::string part(uint64_t no, uint64_t count, uint64_t total, const std::string& tensor) {
  GgufText g;
  const auto u16 = [](uint64_t x) { return bytes_of(static_cast<uint16_t>(x)); };
  g.key("split.no", 2, u16(no))
      .key("split.count", 2, u16(count))
      .key("split.tensors.count", kI32, bytes_of(static_cast<int32_t>(total)));
  g.tensor(tensor, {8}, kTypeF32, 0).data.assign(32, 'x');
  return g.file();
}

TEST(Gguf, FindsTheOtherPartsOfASplitFileFromAnyOfThem) {
  const TempDir dir;
  const fs::path first = dir.put("m-00001-of-00002.gguf", part(0, 2, 2, "a")),
                 second = dir.put("m-00002-of-00002.gguf", part(1, 2, 2, "b"));
  for (const fs::path& path : {first, second}) {
    const auto gguf = Gguf::open(path);
    EXPECT_EQ(gguf->n_parts(), 2u);
    ASSERT_EQ(gguf->tensors().size(), 2u);
    EXPECT_EQ(gguf->tensors()[0].name, "a");
    EXPECT_EQ(gguf->tensors()[1].part, 1);
    EXPECT_EQ(gguf->metadata().integer("split.no"), 0);
  }
}

TEST(Gguf, NamesWhatIsWrongWithTheParts) {
  const TempDir dir;
  const fs::path first = dir.put("m-00001-of-00002.gguf", part(0, 2, 2, "a"));
  expect_error(ErrorKind::not_found, "m-00002-of-00002.gguf: part 2 of 2", [&] { Gguf::open(first); });
  dir.put("m-00002-of-00002.gguf", part(0, 2, 2, "b"));
  expect_error(ErrorKind::bad_input, "says part 1 of 2, expected 2 of 2", [&] { Gguf::open(first); });
  dir.put("m-00002-of-00002.gguf", part(1, 3, 2, "b"));
  expect_error(ErrorKind::bad_input, "says part 2 of 3", [&] { Gguf::open(first); });
  dir.put("m-00002-of-00002.gguf", part(1, 2, 2, "a"));
  expect_error(ErrorKind::bad_input, "'a' is in two parts", [&] { Gguf::open(first); });
  dir.put("m-00002-of-00002.gguf", part(1, 2, 2, "b"));
  dir.put("m-00001-of-00002.gguf", part(0, 2, 3, "a"));
  expect_error(ErrorKind::bad_input, "split.tensors.count is 3", [&] { Gguf::open(first); });
  expect_error(ErrorKind::bad_input, "must be named", [&] { Gguf::open(dir.put("renamed.gguf", part(0, 2, 2, "a"))); });
  expect_error(ErrorKind::bad_input, "split.no is 2",
               [&] { Gguf::open(dir.put("x-00003-of-00002.gguf", part(2, 2, 2, "a"))); });
}

}  // namespace
}  // namespace firstlight
