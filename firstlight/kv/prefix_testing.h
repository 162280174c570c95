// SPDX-License-Identifier: Apache-2.0
// For tests of prefix files: a cache whose bytes are random, and a folder.
#pragma once
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/io/pread_reader.h"
#include "firstlight/io/staged_reader.h"
#include "firstlight/kv/prefix_file.h"
#include "firstlight/kv/prefix_read.h"
#include "firstlight/kv/prefix_write.h"

namespace firstlight {

class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "firstlight-prefix-XXXXXX").native();
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~Folder() { fs::remove_all(path_); }
  fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
  fs::path path_;
};

inline PrefixInfo prefix_info(KvKind kind, int n_pages, int tp = 1) {
  PrefixInfo info;
  info.model = "xxh3:0123456789abcdef0123456789abcdef";
  info.computed_by = "cpu: plain";
  info.kind = kind;
  info.seed = is_compressed(kind) ? 1 : 0;
  info.tp = tp;
  info.n_layers = 3;
  info.n_kv_heads = 2;
  info.head_dim = 64;
  for (int i = 0; i < n_pages * kPageTokens; ++i) info.tokens.push_back((i * 37 + 5) % 50000);
  return info;
}

struct CacheIs {
  int64_t n_pool = 12;
  bool in_order = false;  ///< the sequence's pages lie side by side
  Device device;
};

/// A cache of all ranks, and a sequence's pages in it, in an order of its own.
class FakeCache {
 public:
  FakeCache(const PrefixInfo& info, unsigned seed, bool filled, const CacheIs& is = {})
      : device_(is.device),
        pool_(is.n_pool),
        exact_pool_(is.n_pool),
        table(pool_, info.n_exact() > 0 ? &exact_pool_ : nullptr) {
    std::mt19937 random(seed);
    if (!is.in_order) shuffle(pool_, random);
    if (!is.in_order) shuffle(exact_pool_, random);
    EXPECT_TRUE(table.try_reserve(info.n_pages() * kPageTokens));
    table.hold_exact_before(info.n_pages() * kPageTokens);
    const auto n = static_cast<uint64_t>(is.n_pool);
    for (int r = 0; r < info.tp; ++r) {
      for (const uint64_t bytes : {info.page_bytes(), info.n_exact() > 0 ? info.exact_page_bytes() : 0}) {
        const Buffer& buffer = buffers_.emplace_back(device_, bytes * n);
        std::vector<uint32_t> words(buffer.size() / sizeof(uint32_t));  // zeros, or …
        if (filled) std::generate(words.begin(), words.end(), [&] { return static_cast<uint32_t>(random()); });
        copy(buffer.data(), device_, reinterpret_cast<const std::byte*>(words.data()), {}, buffer.size());
      }
      const auto& last = buffers_[buffers_.size() - 2];
      ranks.push_back({device_, last.data(), info.page_bytes(), buffers_.back().data(), info.exact_page_bytes()});
    }
  }
  /// The bytes of the sequence's pages in order, all ranks.
  std::string content(const PrefixInfo& info) const {
    std::string out;
    const auto add = [&](const std::byte* base, int32_t page, uint64_t bytes) {
      out.resize(out.size() + bytes);
      copy(reinterpret_cast<std::byte*>(out.data() + out.size() - bytes), {},
           base + static_cast<uint64_t>(page) * bytes, device_, bytes);
    };
    for (const RankPages& rank : ranks) {
      for (const int32_t page : table.pages()) add(rank.pages, page, rank.page_bytes);
      for (size_t i = 0; info.n_exact() > 0 && i < table.exact().size(); ++i) {
        const bool kept = i == 0 || i + 3 >= table.exact().size();
        EXPECT_EQ(table.exact()[i] >= 0, kept) << "page " << i;
        if (kept) add(rank.exact, table.exact()[i], rank.exact_page_bytes);
      }
    }
    return out;
  }

 private:
  static void shuffle(PagePool& pool, std::mt19937& random) {
    std::vector<int32_t> taken;
    while (const auto page = pool.try_take()) taken.push_back(*page);
    std::shuffle(taken.begin(), taken.end(), random);
    for (const int32_t page : taken) pool.give_back(page);
  }
  Device device_;
  PagePool pool_, exact_pool_;
  std::vector<Buffer> buffers_;

 public:
  PageTable table;
  std::vector<RankPages> ranks;
};

/// A lane into host memory, by this reader.
inline ReadLane lane_of(std::unique_ptr<Reader> reader) {
  ReadLane lane;
  lane.reader = std::move(reader);
  return lane;
}

/// A lane into this device's memory: of a GPU by the pinned ring, with the kernel that hashes.
inline ReadLane lane_into(Device device) {
  if (device.kind == Device::Kind::cpu) return lane_of(std::make_unique<PreadReader>(2));
  ReadLane lane;
  lane.device = device;
  lane.checks = std::make_unique<LeafChecks>([device] { return make_leaf_hasher(device); });
  auto reader =
      std::make_unique<StagedReader>(std::make_unique<PreadReader>(2), [device] { return make_staging(device); });
  lane.on_device = reader.get();
  lane.reader = std::move(reader);
  return lane;
}

/// All ranks by one lane.
inline uint64_t read_prefix(const PrefixFile& file, ReadLane& lane, std::span<const RankPages> ranks,
                            const PageTable& table, const std::stop_token& stop = {}) {
  const std::vector<ReadLane*> lanes(ranks.size(), &lane);
  return PrefixRead(file, lanes, ranks, table).wait(stop).bytes;
}

inline std::string bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
inline void put_bytes(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

}  // namespace firstlight
