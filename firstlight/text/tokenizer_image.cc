// SPDX-License-Identifier: Apache-2.0
// Layout: a header of 64 bytes, the short parts of the tokenizer.json as JSON padded with spaces to a multiple of 4,
// sizes of the tokens, merges by id, bytes of the tokens. All numbers are 32 bits, little-endian.
#include "firstlight/text/tokenizer_image.h"

#include <array>
#include <bit>
#include <cstring>
#include <span>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/text/tokenizer_json.h"
#include "firstlight/text/vocabulary.h"

namespace firstlight {
namespace {

static_assert(std::endian::native == std::endian::little, "the image is read and written as it lies in memory");

constexpr std::string_view kMagic = "FLtoken1";

struct Header {
  std::array<char, 8> magic{};
  uint32_t json_bytes = 0;  // a multiple of 4
  uint32_t n_entries = 0;   // of the vocabulary
  uint32_t n_tokens = 0;    // entries and holes
  uint32_t n_merges = 0;
  uint32_t token_bytes = 0;
  uint32_t zero = 0;
  std::array<char, 32> source{};  // XXH3-128 of the tokenizer.json, hexadecimal
};
static_assert(sizeof(Header) == 64 && sizeof(MergeIds) == 12);

[[noreturn]] void refuse_image(const std::string& what) {
  throw Error(ErrorKind::bad_input, "tokenizer image: " + what);
}

/// The tokenizer.json without its two long lists.
std::string short_json(const TokenizerParts& parts) {
  const auto object = [](const auto& members, std::string text) {
    for (const auto& [key, value] : members) {
      text += str(text.empty() ? "" : ",", nlohmann::json(key).dump(), ":", value);
    }
    return text;
  };
  std::string json = "{" + object(parts.top, "\"model\":{" + object(parts.model, "") + "}") + "}";
  json.resize((json.size() + 3) / 4 * 4, ' ');
  return json;
}

std::vector<MergeIds> resolve_merges(const TokenizerSpec& spec) {
  const Vocabulary vocabulary(spec);  // refuses merges of unknown tokens
  std::vector<MergeIds> merges;
  merges.reserve(spec.merges.size() / 2);
  for (size_t i = 0; i < spec.merges.size(); i += 2) {
    const std::string joined = std::string(spec.merges[i]).append(spec.merges[i + 1]);
    merges.push_back({static_cast<uint32_t>(vocabulary.find(spec.merges[i])),
                      static_cast<uint32_t>(vocabulary.find(spec.merges[i + 1])),
                      static_cast<uint32_t>(vocabulary.find(joined))});
  }
  return merges;
}

Header read_header(std::string_view image) {
  Header header;
  if (image.size() < sizeof header) refuse_image(str("has ", image.size(), " bytes, at least ", sizeof header));
  std::memcpy(&header, image.data(), sizeof header);
  if (std::string_view(header.magic.data(), kMagic.size()) != kMagic) refuse_image("does not begin with 'FLtoken1'");
  if (header.zero != 0 || header.json_bytes % 4 != 0) refuse_image("the header makes no sense");
  const uint64_t size = sizeof header + uint64_t{header.json_bytes} + 4 * uint64_t{header.n_tokens} +
                        sizeof(MergeIds) * uint64_t{header.n_merges} + header.token_bytes;
  if (size != image.size()) refuse_image(str("has ", image.size(), " bytes, its header says ", size));
  return header;
}

template <class T>
void append(std::string& out, const T* data, size_t n) {
  out.append(reinterpret_cast<const char*>(data), n * sizeof(T));
}

template <class T>
std::vector<T> take(std::string_view& rest, size_t n) {
  std::vector<T> out(n);
  if (n > 0) std::memcpy(out.data(), rest.data(), n * sizeof(T));
  rest.remove_prefix(n * sizeof(T));
  return out;
}

}  // namespace

std::string make_tokenizer_image(std::string_view tokenizer_json) {
  const TokenizerSpec spec = parse_tokenizer_json(tokenizer_json);
  const TokenizerParts parts = read_tokenizer_parts(tokenizer_json);
  const std::string json = short_json(parts);
  const std::vector<MergeIds> merges = resolve_merges(spec);
  std::vector<uint32_t> sizes;
  std::string bytes;
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    sizes.push_back(static_cast<uint32_t>(spec.tokens[id].size()));
    bytes += spec.tokens[id];
  }
  Header header{.json_bytes = static_cast<uint32_t>(json.size()),
                .n_entries = static_cast<uint32_t>(parts.ids.size()),
                .n_tokens = static_cast<uint32_t>(sizes.size()),
                .n_merges = static_cast<uint32_t>(merges.size()),
                .token_bytes = static_cast<uint32_t>(bytes.size())};
  kMagic.copy(header.magic.data(), kMagic.size());
  xxh3_128_hex(std::as_bytes(std::span(tokenizer_json))).copy(header.source.data(), header.source.size());
  std::string image;
  append(image, &header, 1);
  image += json;
  append(image, sizes.data(), sizes.size());
  append(image, merges.data(), merges.size());
  image += bytes;
  return image;
}

TokenizerSpec parse_tokenizer_image(std::string_view image) {
  const Header header = read_header(image);
  if (header.n_entries > header.n_tokens) refuse_image("more entries than tokens");
  std::string_view rest = image.substr(sizeof header);
  const TokenizerParts parts = read_tokenizer_parts(rest.substr(0, header.json_bytes));
  if (parts.has_vocab || parts.has_merges) refuse_image("the short parts hold a long one");
  rest.remove_prefix(header.json_bytes);
  TokenizerSpec spec;
  const std::vector<uint32_t> sizes = take<uint32_t>(rest, header.n_tokens);
  spec.merge_ids = take<MergeIds>(rest, header.n_merges);
  spec.tokens.assign(sizes, rest);
  read_short_parts(parts, header.n_entries, spec);
  return spec;
}

std::string_view image_source(std::string_view image) {
  read_header(image);
  return image.substr(offsetof(Header, source), sizeof(Header::source));
}

}  // namespace firstlight
