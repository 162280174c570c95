// SPDX-License-Identifier: Apache-2.0
#include "firstlight/kv/prefix_head.h"

#include <algorithm>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/quant/turboquant.h"

namespace firstlight {

namespace {

constexpr std::string_view kMagic = "FLPREFIX";
// Bounds of a head's fields. With them no product of sizes reaches 2⁶³: a page has at most 2³⁹ bytes over all ranks,
// there are at most 2¹⁸.
constexpr uint64_t kMostTokens = 1u << 24;
constexpr uint64_t kMostOfAKind = 1u << 10;  // layers, key/value heads, head_dim, ranks

// Offsets of the fixed fields, little-endian.
constexpr size_t kVersionAt = 8, kHeadBytesAt = 16, kFileBytesAt = 24, kTokensAt = 32, kKindAt = 40, kTpAt = 48,
                 kLayersAt = 52, kHeadsAt = 56, kHeadDimAt = 60, kPageTokensAt = 64, kCodesAt = 72, kModelAt = 104,
                 kComputedByAt = kModelAt + kPrefixNameBytes;
constexpr size_t kFieldsEnd = kComputedByAt + kPrefixNameBytes, kKindBytes = 8;
static_assert(kCodesAt + turboquant::kHeaderBytes == kModelAt && kFieldsEnd <= kPrefixHashAt);

uint64_t round_up(uint64_t n) { return (n + kPrefixAlignment - 1) / kPrefixAlignment * kPrefixAlignment; }

template <class T>
void put(std::span<std::byte> bytes, size_t at, T value) {
  for (size_t i = 0; i < sizeof value; ++i)
    bytes[at + i] = static_cast<std::byte>(static_cast<uint64_t>(value) >> 8 * i);
}

template <class T>
T take(std::span<const std::byte> bytes, size_t at) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= static_cast<uint64_t>(bytes[at + i]) << 8 * i;
  return static_cast<T>(value);
}

bool is_printable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

void put_text(std::span<std::byte> bytes, size_t at, std::string_view text, size_t most) {
  if (text.size() > most || !is_printable(text)) throw Error(ErrorKind::bug, str("prefix head: text '", text, "'"));
  std::memcpy(bytes.data() + at, text.data(), text.size());
}

[[noreturn]] void malformed(std::string_view path, const std::string& what) {
  throw Error(ErrorKind::bad_input, str("'", path, "': ", what));
}

/// Printable text, then zeros.
std::string take_text(std::span<const std::byte> bytes, size_t at, size_t size, std::string_view path) {
  const std::string_view all(reinterpret_cast<const char*>(bytes.data()) + at, size);
  const std::string_view text = all.substr(0, all.find('\0'));
  const bool padded =
      std::all_of(all.begin() + static_cast<std::ptrdiff_t>(text.size()), all.end(), [](char c) { return c == '\0'; });
  if (!padded || !is_printable(text)) malformed(path, str("the text at byte ", at, " of its head is none"));
  return std::string(text);
}

template <class T>
int take_size(std::span<const std::byte> bytes, size_t at, std::string_view what, uint64_t most,
              std::string_view path) {
  const uint64_t value = take<T>(bytes, at);
  if (value < 1 || value > most) malformed(path, str(what, " is ", value, ", expected 1 to ", most));
  return static_cast<int>(value);
}

turboquant::Format format_of(const PrefixInfo& info) {
  const KvBits bits = kv_bits(info.kind);
  return {info.head_dim, bits.key, bits.value, info.seed, info.centring};
}

/// 32 bytes: the format of codes, or zeros.
void take_format(std::span<const std::byte> codes, PrefixInfo& info, std::string_view path) {
  if (!is_compressed(info.kind)) {
    if (std::any_of(codes.begin(), codes.end(), [](std::byte b) { return b != std::byte{}; }))
      malformed(path, str(to_string(info.kind), " pages with a format of codes"));
    return;
  }
  info.seed = take<uint64_t>(codes, 16);
  info.centring = take<uint64_t>(codes, 24);
  try {
    turboquant::require_head_dim(info.head_dim);
    turboquant::require_format(codes, format_of(info));
  } catch (const Error& e) {
    throw Error(e.kind(), str("'", path, "': ", e.what()));
  }
}

uint64_t n_hashes(const PrefixInfo& info) {
  return static_cast<uint64_t>(info.tp) * static_cast<uint64_t>(info.n_pages() + info.n_exact());
}

uint64_t section_bytes(uint64_t page_bytes, int64_t n) { return round_up(page_bytes * static_cast<uint64_t>(n)); }

uint64_t rank_bytes(const PrefixInfo& info) {
  return section_bytes(info.page_bytes(), info.n_pages()) + section_bytes(info.exact_page_bytes(), info.n_exact());
}

}  // namespace

int64_t PrefixInfo::n_exact() const noexcept { return is_compressed(kind) ? std::min(n_pages(), kExactTail + 1) : 0; }

int64_t PrefixInfo::exact_page(int64_t i) const noexcept { return i == 0 ? 0 : n_pages() - n_exact() + i; }

uint64_t PrefixInfo::page_bytes() const {
  return kv_page_bytes(kind, std::max(1, n_kv_heads / tp), head_dim) * static_cast<uint64_t>(n_layers);
}

uint64_t PrefixInfo::exact_page_bytes() const {
  return kv_page_bytes(KvKind::bf16, std::max(1, n_kv_heads / tp), head_dim) * static_cast<uint64_t>(n_layers);
}

uint64_t PrefixHead::head_bytes() const noexcept {
  return round_up(kPrefixFixedBytes + sizeof(uint32_t) * info.tokens.size() + sizeof(uint64_t) * n_hashes(info));
}

uint64_t PrefixHead::page_at(int rank, int64_t page) const {
  return head_bytes() + static_cast<uint64_t>(rank) * rank_bytes(info) +
         static_cast<uint64_t>(page) * info.page_bytes();
}

uint64_t PrefixHead::exact_at(int rank, int64_t i) const {
  return page_at(rank, 0) + section_bytes(info.page_bytes(), info.n_pages()) +
         static_cast<uint64_t>(i) * info.exact_page_bytes();
}

uint64_t PrefixHead::section_end(int rank, bool exact) const {
  return exact ? exact_at(rank, info.n_exact()) : page_at(rank, info.n_pages());
}

uint64_t PrefixHead::file_bytes() const { return page_at(info.tp, 0); }

uint64_t PrefixHead::page_hash(int rank, int64_t page) const {
  return hashes[static_cast<size_t>(rank * info.n_pages() + page)];
}

uint64_t PrefixHead::exact_hash(int rank, int64_t i) const {
  return hashes[static_cast<size_t>(info.tp * info.n_pages() + rank * info.n_exact() + i)];
}

std::vector<std::byte> to_bytes(const PrefixHead& head) {
  const PrefixInfo& info = head.info;
  if (info.tokens.empty() || info.tokens.size() % kPageTokens != 0 || head.hashes.size() != n_hashes(info)) {
    throw Error(ErrorKind::bug,
                str("a prefix of ", info.tokens.size(), " tokens and ", head.hashes.size(), " hashes of pages"));
  }
  std::vector<std::byte> bytes(head.head_bytes());
  put_text(bytes, 0, kMagic, kMagic.size());
  put(bytes, kVersionAt, kPrefixVersion);
  put(bytes, kHeadBytesAt, head.head_bytes());
  put(bytes, kFileBytesAt, head.file_bytes());
  put(bytes, kTokensAt, static_cast<uint64_t>(info.tokens.size()));
  put_text(bytes, kKindAt, to_string(info.kind), kKindBytes);
  put(bytes, kTpAt, static_cast<uint32_t>(info.tp));
  put(bytes, kLayersAt, static_cast<uint32_t>(info.n_layers));
  put(bytes, kHeadsAt, static_cast<uint32_t>(info.n_kv_heads));
  put(bytes, kHeadDimAt, static_cast<uint32_t>(info.head_dim));
  put(bytes, kPageTokensAt, uint32_t{kPageTokens});
  if (is_compressed(info.kind)) {
    const auto format = turboquant::to_header(format_of(info));
    std::copy(format.begin(), format.end(), bytes.begin() + kCodesAt);
  }
  put_text(bytes, kModelAt, info.model, kPrefixNameBytes);
  put_text(bytes, kComputedByAt, info.computed_by, kPrefixNameBytes);
  size_t at = kPrefixFixedBytes;
  for (const int token : info.tokens) put(bytes, at, static_cast<uint32_t>(token)), at += sizeof(uint32_t);
  for (const uint64_t hash : head.hashes) put(bytes, at, hash), at += sizeof hash;
  put(bytes, kPrefixHashAt, prefix_head_hash(bytes));
  return bytes;
}

uint64_t prefix_head_hash(std::span<const std::byte> head) {
  if (head.size() < kPrefixFixedBytes) throw Error(ErrorKind::bug, str("a head of ", head.size(), " bytes"));
  std::vector<std::byte> zeroed(head.begin(), head.end());
  put(zeroed, kPrefixHashAt, uint64_t{0});
  return xxh3_64(zeroed);
}

uint64_t prefix_head_bytes(std::span<const std::byte> fixed, uint64_t file_bytes, std::string_view path) {
  const bool ours = fixed.size() >= kPrefixFixedBytes && std::memcmp(fixed.data(), kMagic.data(), kMagic.size()) == 0;
  if (!ours)
    malformed(path, str("no prefix file: one has at least ", kPrefixAlignment, " bytes and begins with ", kMagic));
  if (const auto version = take<uint32_t>(fixed, kVersionAt); version != kPrefixVersion) {
    throw Error(ErrorKind::unsupported, str("'", path, "': a prefix file of version ", version,
                                            ", this program reads version ", kPrefixVersion));
  }
  const auto bytes = take<uint64_t>(fixed, kHeadBytesAt);
  if (bytes < kPrefixAlignment || bytes % kPrefixAlignment != 0 || bytes > file_bytes) {
    throw Error(ErrorKind::damaged, str("'", path, "' bytes [", kHeadBytesAt, ", ", kHeadBytesAt + sizeof bytes,
                                        "): a head of ", bytes, " bytes in a file of ", file_bytes));
  }
  return bytes;
}

namespace {

PrefixInfo parse_fields(std::span<const std::byte> head, std::string_view path) {
  PrefixInfo info;
  const std::string kind = take_text(head, kKindAt, kKindBytes, path);
  const auto known = kv_kind_from(kind);
  if (!known) throw Error(ErrorKind::unsupported, str("'", path, "': a KV cache of '", kind, "'"));
  info.kind = *known;
  info.tp = take_size<uint32_t>(head, kTpAt, "tp", kMostOfAKind, path);
  info.n_layers = take_size<uint32_t>(head, kLayersAt, "n_layers", kMostOfAKind, path);
  info.n_kv_heads = take_size<uint32_t>(head, kHeadsAt, "n_kv_heads", kMostOfAKind, path);
  info.head_dim = take_size<uint32_t>(head, kHeadDimAt, "head_dim", kMostOfAKind, path);
  if (const auto slots = take<uint32_t>(head, kPageTokensAt); slots != kPageTokens)
    throw Error(ErrorKind::unsupported,
                str("'", path, "': pages of ", slots, " tokens, this program's have ", kPageTokens));
  take_format(head.subspan(kCodesAt, turboquant::kHeaderBytes), info, path);
  info.model = take_text(head, kModelAt, kPrefixNameBytes, path);
  info.computed_by = take_text(head, kComputedByAt, kPrefixNameBytes, path);
  if (info.model.empty()) malformed(path, "it does not say of which model it is");
  return info;
}

/// Bytes of the head that mean nothing are zeros.
void require_zeros(std::span<const std::byte> head, size_t begin, size_t end, std::string_view path) {
  for (size_t at = begin; at < end; ++at) {
    if (head[at] != std::byte{}) malformed(path, str("byte ", at, " of its head is not zero"));
  }
}

}  // namespace

PrefixHead parse_prefix_head(std::span<const std::byte> head, uint64_t file_bytes, std::string_view path) {
  const uint64_t head_bytes = prefix_head_bytes(head, file_bytes, path);
  if (head_bytes != head.size()) throw Error(ErrorKind::bug, str(head.size(), " bytes of a head of ", head_bytes));
  const auto found = prefix_head_hash(head), wanted = take<uint64_t>(head, kPrefixHashAt);
  if (found != wanted) {
    throw Error(ErrorKind::damaged, str("'", path, "' bytes [0, ", head_bytes, "): XXH3-64 of the head is ", std::hex,
                                        found, ", it says ", wanted));
  }
  const int n = take_size<uint64_t>(head, kTokensAt, "number of tokens", kMostTokens, path);
  if (n % kPageTokens != 0) malformed(path, str(n, " tokens are no whole pages of ", kPageTokens));
  PrefixHead parsed{parse_fields(head, path), {}};
  PrefixInfo& info = parsed.info;
  const auto n_tokens = static_cast<size_t>(n);
  if (n_tokens > (head.size() - kPrefixFixedBytes) / sizeof(uint32_t))
    malformed(path, str(n, " tokens in a head of ", head_bytes, " bytes"));
  for (size_t i = 0, at = kPrefixFixedBytes; i < n_tokens; ++i, at += sizeof(uint32_t)) {
    const auto id = take<uint32_t>(head, at);
    if (id > INT32_MAX) malformed(path, str("token ", i, " is ", id));
    info.tokens.push_back(static_cast<int>(id));
  }
  if (parsed.head_bytes() != head_bytes)
    malformed(path, str("a head of ", head_bytes, " bytes, its fields take ", parsed.head_bytes()));
  size_t at = kPrefixFixedBytes + sizeof(uint32_t) * n_tokens;
  for (uint64_t i = n_hashes(info); i > 0; --i, at += sizeof(uint64_t))
    parsed.hashes.push_back(take<uint64_t>(head, at));
  require_zeros(head, at, head.size(), path);
  require_zeros(head, kVersionAt + sizeof(uint32_t), kHeadBytesAt, path);
  require_zeros(head, kPageTokensAt + sizeof(uint32_t), kCodesAt, path);
  require_zeros(head, kFieldsEnd, kPrefixHashAt, path);
  const auto said = take<uint64_t>(head, kFileBytesAt);
  if (said != parsed.file_bytes())
    malformed(path, str("a file of ", said, " bytes, its pages take ", parsed.file_bytes()));
  if (said != file_bytes) {
    throw Error(ErrorKind::damaged, str("'", path, "' bytes [", std::min(said, file_bytes), ", ",
                                        std::max(said, file_bytes), "): the file has ", file_bytes,
                                        " bytes, its head says ", said, file_bytes < said ? ": it was cut" : ""));
  }
  return parsed;
}

void require_same_cache(const PrefixInfo& found, const PrefixInfo& expected, std::string_view path) {
  const auto require = [&](std::string_view field, const auto& a, const auto& b) {
    if (a == b) return;
    throw Error(ErrorKind::bad_input,
                str("'", path, "': a prefix of another cache: ", field, " is ", a, ", expected ", b));
  };
  require("the model", found.model, expected.model);
  require("the number of layers", found.n_layers, expected.n_layers);
  require("the number of key/value heads", found.n_kv_heads, expected.n_kv_heads);
  require("head_dim", found.head_dim, expected.head_dim);
  require("the kind of cache (--kv)", to_string(found.kind), to_string(expected.kind));
  require("tp", found.tp, expected.tp);
  require("the seed of codes", found.seed, expected.seed);
  require("the centring of codes", found.centring, expected.centring);
}

void require_begins_with(std::span<const int> prompt, const PrefixInfo& found, std::string_view path) {
  const size_t n = std::min(prompt.size(), found.tokens.size());
  const auto at = static_cast<size_t>(
      std::mismatch(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(n), found.tokens.begin()).first -
      prompt.begin());
  if (at < n) {
    throw Error(ErrorKind::bad_input,
                str("'", path, "': the prompt does not begin with it: token ", at, " is ", prompt[at],
                    ", the prefix of ", found.tokens.size(), " tokens has ", found.tokens[at]));
  }
  if (n < found.tokens.size()) {
    throw Error(ErrorKind::bad_input, str("'", path, "': a prefix of ", found.tokens.size(),
                                          " tokens; the prompt has its first ", prompt.size(), " only"));
  }
}

}  // namespace firstlight
