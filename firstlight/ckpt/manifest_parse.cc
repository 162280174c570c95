// SPDX-License-Identifier: Apache-2.0
// manifest.json, read as if its author were hostile: exact keys, no doubled key, checked sums, plain names.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/manifest.h"

namespace firstlight {

namespace {

using nlohmann::json;

constexpr uint64_t kMaxBytes = uint64_t{1} << 60;  // a bound that no sum of two can overflow
constexpr size_t kMaxTensors = 10'000'000;
constexpr int kMaxTp = 4096;

class Parser {
 public:
  explicit Parser(std::string_view path) : path_(path) {}

  Manifest parse(std::string_view text) {
    const json root = parse_json(text);
    if (!root.is_object()) fail("is not a JSON object");
    const int64_t version = integer(field(root, "firstlight_rank_checkpoint", "the manifest"), "version", INT32_MAX);
    if (version != 1) {
      throw Error(ErrorKind::unsupported, str("'", path_, "' has version ", version, "; this program reads version 1"));
    }
    only(root, {"firstlight_rank_checkpoint", "architecture", "dtype", "source", "tensors", "tps", "files"},
         "the manifest");
    Manifest m;
    m.architecture = text_of(field(root, "architecture", "the manifest"), "architecture");
    m.recipe_dtype = text_of(field(root, "dtype", "the manifest"), "dtype");
    if (m.recipe_dtype != "source" && m.recipe_dtype != "bf16" && m.recipe_dtype != "f32") {
      fail(str("dtype is '", m.recipe_dtype, "', expected source, bf16 or f32"));
    }
    const json& source = field(root, "source", "the manifest");
    only(source, {"kind", "fingerprint"}, "source");
    m.source_kind = text_of(field(source, "kind", "source"), "source kind");
    m.source_fingerprint = text_of(field(source, "fingerprint", "source"), "source fingerprint");
    read_files(field(root, "files", "the manifest"), m);
    read_tensors(array(field(root, "tensors", "the manifest"), "tensors"), m);
    for (const json& tp : array(field(root, "tps", "the manifest"), "tps")) read_tp(tp, m);
    if (m.tps.empty()) fail("tps is empty");
    return m;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::bad_input, str("'", path_, "': ", what));
  }

  json parse_json(std::string_view text) const {
    if (text.find('\0') != text.npos) fail(str("NUL byte at ", text.find('\0')));  // nlohmann's lexer ends there
    // One set of keys an open object: nlohmann keeps the last of two equal keys, another reader the first.
    std::vector<std::set<std::string>> open;
    const json::parser_callback_t no_doubles = [&](int depth, json::parse_event_t event, json& value) {
      if (depth > 16) fail("is nested deeper than 16 levels");
      if (event == json::parse_event_t::object_start) open.emplace_back();
      if (event == json::parse_event_t::object_end) open.pop_back();
      if (event == json::parse_event_t::key && !open.back().insert(value.get_ref<const std::string&>()).second) {
        fail(str("key '", value.get_ref<const std::string&>(), "' stands twice in one object"));
      }
      return true;
    };
    try {
      return json::parse(text, no_doubles);
    } catch (const json::exception& e) {
      fail(str("is not JSON: ", e.what()));
    }
  }

  const json& field(const json& object, const char* key, const char* where) const {
    if (!object.is_object()) fail(str(where, " is not an object"));
    const auto found = object.find(key);
    if (found == object.end()) fail(str(where, " has no '", key, "'"));
    return *found;
  }
  void only(const json& object, std::initializer_list<std::string_view> keys, const char* where) const {
    if (!object.is_object()) fail(str(where, " is not an object"));
    for (const auto& item : object.items()) {
      if (std::find(keys.begin(), keys.end(), item.key()) == keys.end())
        fail(str(where, " has an unknown key '", item.key(), "'"));
    }
  }
  const json& array(const json& value, const char* where) const {
    if (!value.is_array()) fail(str(where, " is not an array"));
    return value;
  }
  std::string text_of(const json& value, const char* where) const {
    if (!value.is_string() || value.get_ref<const std::string&>().empty())
      fail(str(where, " is not a non-empty string"));
    return value.get<std::string>();
  }
  int64_t integer(const json& value, const char* where, uint64_t at_most) const {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > at_most) {
      fail(str(where, " is ", value.dump().substr(0, 40), ", expected an integer from 0 to ", at_most));
    }
    return static_cast<int64_t>(value.get<uint64_t>());
  }
  std::string hash_of(const json& value, const char* where) const {
    std::string hash = text_of(value, where);
    if (hash.size() != 32 || hash.find_first_not_of("0123456789abcdef") != std::string::npos) {
      fail(str(where, " is '", hash.substr(0, 64), "', expected 32 lower-case hexadecimal digits"));
    }
    return hash;
  }
  uint64_t bytes(const json& value, const char* where) const {
    return static_cast<uint64_t>(integer(value, where, kMaxBytes));
  }

  void require_plain_name(const std::string& name) const {
    const bool bad_byte =
        std::any_of(name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == '\\'; });
    bool ok = !name.empty() && name.size() <= 1024 && !bad_byte;
    for (size_t begin = 0; ok && begin <= name.size();) {
      const size_t end = std::min(name.find('/', begin), name.size());
      const std::string_view step = std::string_view(name).substr(begin, end - begin);
      ok = !step.empty() && step != "." && step != "..";
      begin = end + 1;
    }
    if (!ok) fail(str("file name '", name.substr(0, 200), "' is not a plain relative name"));
  }

  void read_files(const json& files, Manifest& m) const {
    if (!files.is_object()) fail("files is not an object");
    uint64_t total = 0;
    for (const auto& item : files.items()) {
      require_plain_name(item.key());
      if (item.key() == "READY" || item.key() == "manifest.json") fail(str("files lists '", item.key(), "'"));
      only(item.value(), {"size", "xxh3_128"}, "a file");
      ManifestFile file;
      file.size = bytes(field(item.value(), "size", "a file"), "a file's size");
      file.xxh3_128 = hash_of(field(item.value(), "xxh3_128", "a file"), "a file's xxh3_128");
      total += file.size;
      if (total > kMaxBytes) fail("the files' sizes overflow");
      m.files.emplace(item.key(), std::move(file));
    }
  }

  static std::optional<SliceKind> slice_kind(std::string_view name) {
    for (const SliceKind kind : {SliceKind::replicated, SliceKind::q_rows, SliceKind::kv_rows, SliceKind::rows,
                                 SliceKind::columns, SliceKind::vocab_rows}) {
      if (to_string(kind) == name) return kind;
    }
    return std::nullopt;
  }

  void read_tensors(const json& tensors, Manifest& m) const {
    if (tensors.empty() || tensors.size() > kMaxTensors) fail(str("has ", tensors.size(), " tensors"));
    std::set<std::string> names;
    for (const json& value : tensors) {
      only(value, {"name", "shape", "dtype", "slice"}, "a tensor");
      ManifestTensor tensor;
      tensor.name = text_of(field(value, "name", "a tensor"), "a tensor's name");
      if (!names.insert(tensor.name).second) fail(str("tensor '", tensor.name, "' stands twice"));
      const json& shape = array(field(value, "shape", "a tensor"), "a tensor's shape");
      if (shape.empty() || shape.size() > 2)
        fail(str("tensor '", tensor.name, "' has ", shape.size(), " dimensions, expected 1 or 2"));
      uint64_t n_elements = 1;
      for (const json& n : shape) {
        tensor.shape.push_back(integer(n, "a tensor's dimension", kMaxBytes));
        const auto size = static_cast<uint64_t>(tensor.shape.back());
        if (size == 0 || __builtin_mul_overflow(n_elements, size, &n_elements) || n_elements > kMaxBytes / 8) {
          fail(str("tensor '", tensor.name, "': the shape is empty or overflows"));
        }
      }
      const std::string dtype = text_of(field(value, "dtype", "a tensor"), "a tensor's dtype");
      const auto known = dtype_from_safetensors(dtype);
      if (known != DType::bf16 && known != DType::f32 && known != DType::f8_e4m3) {
        fail(str("tensor '", tensor.name, "' has dtype '", dtype, "', expected BF16, F32 or F8_E4M3"));
      }
      tensor.dtype = *known;
      const std::string slice = text_of(field(value, "slice", "a tensor"), "a tensor's slice");
      const auto kind = slice_kind(slice);
      if (!kind) fail(str("tensor '", tensor.name, "' has the unknown slice '", slice, "'"));
      if (*kind == SliceKind::columns && tensor.shape.size() != 2)
        fail(str("tensor '", tensor.name, "' has no columns"));
      tensor.slice = *kind;
      m.tensors.push_back(std::move(tensor));
    }
  }

  void require_listed(const Manifest& m, const std::string& name, std::optional<uint64_t> size) const {
    const auto found = m.files.find(name);
    if (found == m.files.end()) fail(str("'", name, "' is not under files"));
    if (size && found->second.size != *size) {
      fail(str("'", name, "' has size ", found->second.size, " under files, ", *size, " was expected"));
    }
  }

  void read_tp(const json& value, Manifest& m) const {
    only(value, {"tp", "ranks"}, "a tp");
    ManifestTp tp;
    tp.tp = static_cast<int>(integer(field(value, "tp", "a tp"), "tp", kMaxTp));
    if (tp.tp < 1 || (!m.tps.empty() && tp.tp <= m.tps.back().tp)) fail(str("tp ", tp.tp, " is out of order"));
    const json& ranks = array(field(value, "ranks", "a tp"), "ranks");
    if (ranks.size() != static_cast<size_t>(tp.tp)) fail(str("tp ", tp.tp, " has ", ranks.size(), " ranks"));
    for (const json& rank : ranks) tp.ranks.push_back(read_rank(rank, m, tp.tp, static_cast<int>(tp.ranks.size())));
    m.tps.push_back(std::move(tp));
  }

  ManifestRank read_rank(const json& value, const Manifest& m, int tp, int index) const {
    only(value, {"directory", "parts"}, "a rank");
    ManifestRank rank;
    rank.directory = text_of(field(value, "directory", "a rank"), "a rank's directory");
    char want[64];
    std::snprintf(want, sizeof want, "tp%d/rank-%02d", tp, index);
    if (rank.directory != want)
      fail(str("rank ", index, " of tp ", tp, " is in '", rank.directory, "', expected '", want, "'"));
    const json& parts = array(field(value, "parts", "a rank"), "parts");
    if (parts.empty() || parts.size() > 99999) fail(str("'", rank.directory, "' has ", parts.size(), " parts"));
    uint64_t n_leaves = 0;
    for (const json& part : parts) rank.parts.push_back(read_part(part, m, rank, parts.size(), n_leaves));
    require_listed(m, rank.directory + "/leaves.xxh3", n_leaves * 8);
    require_listed(m, rank.directory + "/config.json", std::nullopt);
    require_listed(m, rank.directory + "/model.safetensors.index.json", std::nullopt);
    return rank;
  }

  ManifestPart read_part(const json& value, const Manifest& m, const ManifestRank& rank, size_t n_parts,
                         uint64_t& n_leaves) const {
    only(value, {"file", "data_bytes", "tail_begin", "first_leaf", "header_bytes", "header_xxh3"}, "a part");
    ManifestPart part;
    part.file = text_of(field(value, "file", "a part"), "a part's file");
    char want[64];
    std::snprintf(want, sizeof want, "/model-%05zu-of-%05zu.safetensors", rank.parts.size() + 1, n_parts);
    if (part.file != rank.directory + want) fail(str("part '", part.file, "' should be '", rank.directory, want, "'"));
    part.data_bytes = bytes(field(value, "data_bytes", "a part"), "data_bytes");
    part.tail_begin = bytes(field(value, "tail_begin", "a part"), "tail_begin");
    part.first_leaf = bytes(field(value, "first_leaf", "a part"), "first_leaf");
    part.header_bytes = bytes(field(value, "header_bytes", "a part"), "header_bytes");
    part.header_xxh3 = hash_of(field(value, "header_xxh3", "a part"), "a part's header_xxh3");
    if (part.header_bytes < 10 || part.header_bytes > kDataBegin) {  // 8 length bytes and "{}" at least
      fail(str("'", part.file, "': header_bytes is ", part.header_bytes, ", expected 10 to ", kDataBegin));
    }
    if (part.data_bytes == 0 || part.tail_begin > part.data_bytes || part.tail_begin % kPageBytes != 0) {
      fail(str("'", part.file, "': data_bytes ", part.data_bytes, " and tail_begin ", part.tail_begin,
               " do not fit together"));
    }
    if (part.first_leaf != n_leaves)
      fail(str("'", part.file, "': first_leaf is ", part.first_leaf, ", expected ", n_leaves));
    n_leaves += (part.data_bytes + kLeafBytes - 1) / kLeafBytes;
    require_listed(m, part.file, kDataBegin + part.data_bytes);
    return part;
  }

  std::string path_;
};

}  // namespace

Manifest parse_manifest(std::string_view json, std::string_view path) { return Parser(path).parse(json); }

}  // namespace firstlight
