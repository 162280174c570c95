// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/safetensors.h"

#include "firstlight/ckpt/source_files.h"
#include "firstlight/ckpt/source_test_util.h"

namespace firstlight {
namespace {

using testing_util::bytes_of;
using testing_util::expect_error;
using testing_util::safetensors_file;
using testing_util::TempDir;

constexpr std::string_view kGood =
    R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}})";

SafetensorsHeader parse(std::string_view head, uint64_t data_bytes) {
  return parse_safetensors_header(head, data_bytes, "f.safetensors");
}
void refuse(std::string_view head, uint64_t data_bytes, std::string_view part, ErrorKind kind = ErrorKind::bad_input) {
  SCOPED_TRACE(head);
  const std::string what = expect_error(kind, part, [&] { parse(head, data_bytes); });
  EXPECT_NE(what.find("f.safetensors"), std::string::npos) << what;
}
/// One tensor "t" with these fields.
std::string one(std::string_view fields) { return R"({"t":{)" + std::string(fields) + "}}"; }

TEST(Safetensors, ReadsNamesShapesAndOffsetsInOrderOfOffset) {
  const auto h = parse(
      R"({"z":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"__metadata__":{"k":"v\u00e9"},"a":{"data_offsets":[4,4],"shape":[0,7],"dtype":"F64"},
          "m":{"dtype":"F16","shape":[1,2],"data_offsets":[4,8]}}   )",
      8);
  ASSERT_EQ(h.tensors.size(), 3u);
  EXPECT_EQ(h.tensors[0].name, "z");
  EXPECT_EQ(h.tensors[1].name, "a");
  EXPECT_EQ(h.tensors[2].name, "m");
  EXPECT_EQ(h.tensors[2].shape, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(h.tensors[2].begin, 4u);
  EXPECT_EQ(h.metadata.at("k"), "vé");
}

TEST(Safetensors, ReadsTheFileThatTheReferenceLibraryWrote) {
  const auto file = File::open(FIRSTLIGHT_TESTDATA "/source/qwen3/model.safetensors");
  const auto h = read_safetensors_header(*file);
  EXPECT_EQ(h.metadata.at("format"), "pt");
  EXPECT_EQ(h.tensors.back().end + h.data_begin, file->size());
  const auto named = [&](std::string_view name) {
    return std::find_if(h.tensors.begin(), h.tensors.end(), [&](const auto& t) { return t.name == name; });
  };
  const auto q = named("model.layers.1.self_attn.q_proj.weight");
  ASSERT_NE(q, h.tensors.end());
  EXPECT_EQ(q->shape, (std::vector<int64_t>{24, 16}));
  EXPECT_EQ(q->dtype, DType::bf16);
}

TEST(Safetensors, SkipsUnknownFieldsAsTheReferenceReaderDoes) {
  EXPECT_EQ(parse(one(R"("dtype":"U8","x":{"y":[1,{"z":null}]},"shape":[1],"w":-1.5,"data_offsets":[0,1])"), 1)
                .tensors.size(),
            1u);
}

TEST(Safetensors, RefusesDuplicates) {
  refuse(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
         2, "'a' appears twice");
  refuse(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}})",
         1, "twice");
  refuse(one(R"("dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1])"), 1, "duplicate key 'dtype'");
  refuse(one(R"("dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1])"), 1, "duplicate key 'shape'");
  refuse(one(R"("dtype":"U8","shape":[1],"data_offsets":[0,1],"data_offsets":[0,1])"), 1,
         "duplicate key 'data_offsets'");
  refuse(one(R"("x":1,"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":2)"), 1, "duplicate key 'x'");
  refuse(R"({"__metadata__":{"k":"1","k":"2"}})", 0, "duplicate key 'k' in __metadata__");
  refuse(R"({"__metadata__":{},"__metadata__":{}})", 0, "__metadata__: appears twice");
}

TEST(Safetensors, RefusesHolesOverlapsAndWrongEnds) {
  refuse(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})",
         9, "hole");
  refuse(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
         7, "overlaps");
  refuse(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
         4, "overlaps");
  refuse(one(R"("dtype":"U8","shape":[4],"data_offsets":[4,8])"), 8, "hole");
  refuse(one(R"("dtype":"U8","shape":[4],"data_offsets":[0,4])"), 5, "fill only 4");  // bytes behind the last tensor
  refuse(one(R"("dtype":"U8","shape":[4],"data_offsets":[0,4])"), 3, "has only 3");   // a cut file
  refuse(one(R"("dtype":"U8","shape":[4],"data_offsets":[4,0])"), 4, "backwards");
  refuse("{}", 1, "fill only 0");
}

TEST(Safetensors, RefusesSizesThatDisagreeOrOverflow) {
  refuse(one(R"("dtype":"F32","shape":[4],"data_offsets":[0,4])"), 4, "need 16");
  refuse(one(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])"), 0, "63 bits");
  refuse(one(R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0, "63 bits");
  refuse(one(R"("dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0])"), 0, "63 bits");
  refuse(one(R"("dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0])"), 0, "63 bits");
  refuse(one(R"("dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,0])"), 0, "shape has the number");
  refuse(one(R"("dtype":"U8","shape":[1],"data_offsets":[18446744073709551615,18446744073709551615])"), 1,
         "span 0 bytes");
  refuse(one(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1])"), 1, "more than 8 dimensions");
}

TEST(Safetensors, RefusesWrongKindsOfValues) {
  refuse(one(R"("dtype":"U8","shape":[-1],"data_offsets":[0,1])"), 1, "negative number -1");
  refuse(one(R"("dtype":"U8","shape":[1.0],"data_offsets":[0,1])"), 1, "shape has the number 1.0");
  refuse(one(R"("dtype":"U8","shape":[[1]],"data_offsets":[0,1])"), 1, "shape has an array");
  refuse(one(R"("dtype":"U8","shape":1,"data_offsets":[0,1])"), 1, "shape has the number 1");
  refuse(one(R"("dtype":"U8","shape":[1],"data_offsets":[0])"), 1, "fewer than 2");
  refuse(one(R"("dtype":"U8","shape":[1],"data_offsets":[0,1,2])"), 1, "more than 2");
  refuse(one(R"("dtype":"U8","shape":[1],"data_offsets":{"0":1})"), 1, "data_offsets has an object");
  refuse(one(R"("dtype":8,"shape":[1],"data_offsets":[0,1])"), 1, "dtype is the number 8");
  refuse(one(R"("dtype":"U8","shape":[1])"), 1, "missing");
  refuse(R"({"t":[]})", 0, "is an array, expected an object");
  refuse(R"({"t":null})", 0, "is null, expected an object");
  refuse(R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "empty name");
  refuse(R"({"a\n":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, "a tensor's name has a control character");
  refuse(R"({"a\u0000":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
         "a tensor's name has a control character");
  refuse(R"({"__metadata__":{"k":{"nested":"v"}}})", 0, "expected a string");
  refuse(R"({"__metadata__":{"k":1}})", 0, "expected a string");
  refuse(R"({"__metadata__":"x"})", 0, "__metadata__: is a string");
  refuse(one(R"("dtype":"F4","shape":[2],"data_offsets":[0,1])"), 1, "dtype 'F4'", ErrorKind::unsupported);
  refuse(one(R"("dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1])"), 1, "F8_E8M0", ErrorKind::unsupported);
}

TEST(Safetensors, RefusesTextThatIsNotExactlyOneJsonObjectAndSpaces) {
  refuse("", 0, "does not begin with '{'");
  refuse(" {}", 0, "does not begin with '{'");
  refuse("\xef\xbb\xbf{}", 0, "does not begin with '{'");
  refuse("[]", 0, "does not begin with '{'");
  refuse("{}\n", 0, "does not end");
  refuse(std::string_view("{}\0\0", 4), 0, "NUL");
  refuse(std::string_view("{}\0{}", 5), 0, "NUL");
  refuse("{}}", 0, "not JSON");
  refuse("{} {}", 0, "not JSON");
  refuse("{\"a\":1,}", 0, "expected an object");
  refuse("{\"\xff\":{}}", 0, "not JSON");      // not UTF-8
  refuse("{\"\xc0\x80\":{}}", 0, "not JSON");  // overlong
  refuse(R"({"\ud800":{}})", 0, "not JSON");   // half a surrogate pair
  refuse("{/**/}", 0, "not JSON");
  refuse(one(R"("x":)" + std::string(100, '[') + std::string(100, ']') +
             R"(,"dtype":"U8","shape":[1],"data_offsets":[0,1])"),
         1, "nested deeper");
}

TEST(Safetensors, RefusesFilesWithImpossibleHeaderLengths) {
  const TempDir dir;
  const auto refuse_file = [&](std::string_view content, std::string_view part) {
    const auto file = File::open(dir.put("x.safetensors", content));
    expect_error(ErrorKind::bad_input, part, [&] { read_safetensors_header(*file); });
  };
  refuse_file("", "0 bytes are no safetensors");
  refuse_file("1234567", "7 bytes are no safetensors");
  refuse_file(bytes_of<uint64_t>(100'000'001) + "{}", "at most 100000000");
  refuse_file(bytes_of<uint64_t>(~0ull) + "{}", "at most 100000000");
  refuse_file(bytes_of<uint64_t>(3) + "{}", "the file has only 10");
  refuse_file(bytes_of<uint64_t>(0), "does not begin");
  const std::string whole = safetensors_file(kGood, 26);
  EXPECT_EQ(read_safetensors_header(*File::open(dir.put("good", whole))).tensors.size(), 2u);
  for (size_t n = 0; n < whole.size(); ++n) {  // cut anywhere, it is refused
    const auto file = File::open(dir.put("cut", std::string_view(whole).substr(0, n)));
    expect_error(ErrorKind::bad_input, "cut", [&] { read_safetensors_header(*file); });
  }
}

TEST(Safetensors, WrittenHeadersArePaddedToSizeAndReadBack) {
  std::vector<SafetensorsTensor> tensors{
      {"b\"\\", DType::bf16, {3, 2}, 0, 0}, {"é", DType::f32, {}, 0, 0}, {"empty", DType::f32, {0}, 0, 0}};
  const std::map<std::string, std::string> metadata{{"format", "pt"}, {"k", "\x01"}};
  for (const uint64_t padded : {uint64_t{0}, uint64_t{4096}}) {
    const std::string header = make_safetensors_header(tensors, metadata, padded);
    if (padded != 0) {
      EXPECT_EQ(header.size(), padded);
    }
    EXPECT_EQ(header.size() % 8, 0u);
    const auto back = parse(std::string_view(header).substr(8), 16);
    EXPECT_EQ(back.data_begin, header.size());
    EXPECT_EQ(back.metadata, metadata);
    ASSERT_EQ(back.tensors.size(), 3u);
    EXPECT_EQ(back.tensors[0].name, tensors[0].name);
    EXPECT_EQ(back.tensors[1].begin, 12u);
  }
  expect_error(ErrorKind::bad_input, "does not fit", [&] { make_safetensors_header(tensors, metadata, 64); });
  tensors[1].begin = 13;
  tensors[1].end = 17;
  expect_error(ErrorKind::bug, "é", [&] { make_safetensors_header(tensors, metadata, 0); });
}

TEST(SafetensorsIndex, RefusesNamesThatLeaveTheDirectory) {
  const auto refuse_index = [](std::string_view json, std::string_view part) {
    expect_error(ErrorKind::bad_input, part, [&] { parse_safetensors_index(json, "i.json"); });
  };
  for (const char* name : {"../x.safetensors", "/x.safetensors", "a/b.safetensors", "..", "", ".x.safetensors", "x.bin",
                           "x\\u0000.safetensors"}) {
    refuse_index(R"({"weight_map":{"t":")" + std::string(name) + "\"}}", "not a plain name");
  }
  refuse_index(R"({"weight_map":{"t":"a.safetensors","t":"b.safetensors"}})", "appears twice");
  refuse_index(R"({"weight_map":{},"weight_map":{}})", "appears twice");
  refuse_index(R"({"weight_map":{"t":1}})", "no string");
  refuse_index(R"({"weight_map":{"t":{}}})", "no string");
  refuse_index(R"({"weight_map":"x"})", "not an object");
  refuse_index(R"({"metadata":{}})", "no weight_map");
  refuse_index(R"({"metadata":{"weight_map":{"t":"a.safetensors"}}})", "no weight_map");
  refuse_index("[]", "not an object");
  refuse_index("{", "not JSON");
  EXPECT_EQ(parse_safetensors_index(R"({"metadata":{"total_size":1,"x":[{}]},"weight_map":{"t":"a.safetensors"}})", "i")
                .at("t"),
            "a.safetensors");
}

TEST(SafetensorsIndex, NamesTheFileOrTensorThatIsMissing) {
  const TempDir dir;
  const auto header = [](const std::string& name) {
    return R"({")" + name + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  };
  dir.put("model.safetensors.index.json", R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  dir.put("1.safetensors", safetensors_file(header("a"), 1));
  expect_error(ErrorKind::not_found, "2.safetensors: missing", [&] { open_safetensors_directory(dir.path()); });
  dir.put("2.safetensors", safetensors_file(header("c"), 1));
  expect_error(ErrorKind::bad_input, "tensor 'b' is not in it", [&] { open_safetensors_directory(dir.path()); });
  dir.put("2.safetensors", safetensors_file(header("a"), 1));
  expect_error(ErrorKind::bad_input, "'a' is also in 1.safetensors", [&] { open_safetensors_directory(dir.path()); });
  fs::create_directory(dir.path() / "blobs");
  fs::rename(dir.put("x", safetensors_file(header("b"), 1)), dir.path() / "blobs" / "x");
  fs::remove(dir.path() / "2.safetensors");
  fs::create_symlink("blobs/x", dir.path() / "2.safetensors");  // as in the hub's cache
  EXPECT_EQ(open_safetensors_directory(dir.path()).places.size(), 2u);
  dir.put("model.safetensors.index.json", R"({"weight_map":{"a":"1.safetensors"}})");
  EXPECT_EQ(open_safetensors_directory(dir.path()).places.size(), 1u);  // a file that is not listed is not looked at
  dir.put("1.safetensors", safetensors_file(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                            R"("d":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                                            2));
  expect_error(ErrorKind::bad_input, "tensor 'd' is not listed", [&] { open_safetensors_directory(dir.path()); });
}

}  // namespace
}  // namespace firstlight
