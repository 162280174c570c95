// SPDX-License-Identifier: Apache-2.0
// Layout, in host and device memory alike: ids, then for either set its rows, single rows and tiles, then the pages,
// then exact pages.
// Every part begins where the capacities say, so that addresses stay while a batch's numbers change.
#include <algorithm>
#include <bit>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cuda_pass.cuh"

namespace firstlight::cuda {

namespace {

int64_t n_rows_of(std::span<const AttentionSpan> spans) {
  int64_t n = 0;
  for (const AttentionSpan& span : spans) n += span.n_rows;
  return n;
}

int64_t n_pages_of(const AttentionSpan& span) { return (span.position + span.n_rows - 1) / kPageTokens + 1; }

}  // namespace

// Tiles: a span of at least 8 rows has at most one for each 8.
uint64_t PassTables::row_bytes() const {
  const uint64_t n = static_cast<uint64_t>(row_capacity_);
  return n * 4 + 2 * (2 * n * sizeof(RowOnDevice) + n / 8 * sizeof(TileOnDevice));
}

bool PassTables::reserve(int64_t n_rows, int64_t n_pages, cudaStream_t stream) {
  if (n_rows <= row_capacity_ && n_pages <= page_capacity_) return false;
  const auto grown = [](int64_t n, int64_t least) {
    return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max(n, least))));
  };
  row_capacity_ = std::max(row_capacity_, grown(n_rows, 64));
  page_capacity_ = std::max(page_capacity_, grown(n_pages, 1024));
  const uint64_t bytes = row_bytes() + 2 * static_cast<uint64_t>(page_capacity_) * 4;
  host_.reserve(bytes, stream);
  device_.reserve(bytes, stream);
  return true;
}

void PassTables::list(std::span<const AttentionSpan> spans, int which) {
  RowSet& set = sets_[which];
  set = RowSet{.spans = spans.data(), .n_spans = spans.size()};
  const int64_t n = row_capacity_;
  const uint64_t rows_at =
      static_cast<uint64_t>(n) * 4 + static_cast<uint64_t>(which) * (row_bytes() - static_cast<uint64_t>(n) * 4) / 2;
  const uint64_t singles_at = rows_at + static_cast<uint64_t>(n) * sizeof(RowOnDevice);
  const uint64_t tiles_at = singles_at + static_cast<uint64_t>(n) * sizeof(RowOnDevice);
  RowOnDevice* rows = reinterpret_cast<RowOnDevice*>(host_.as<std::byte>() + rows_at);
  RowOnDevice* singles = reinterpret_cast<RowOnDevice*>(host_.as<std::byte>() + singles_at);
  TileOnDevice* tiles = reinterpret_cast<TileOnDevice*>(host_.as<std::byte>() + tiles_at);
  const auto pages_of = [&](const AttentionSpan& span) {
    return std::find_if(known_pages_.begin(), known_pages_.end(),
                        [&](const auto& each) { return each.first == span.pages; })
        ->second;
  };
  set.in_place = true;
  for (const AttentionSpan& span : spans) {
    const int32_t pages = pages_of(span);
    for (int64_t i = 0; i < span.n_rows; ++i) {
      const RowOnDevice row{static_cast<int32_t>(span.row_begin + i), static_cast<int32_t>(span.position + i), pages,
                            set.n_rows};
      set.in_place = set.in_place && row.row == set.n_rows;
      rows[set.n_rows++] = row;
      if (span.n_rows >= kTiledRows) continue;
      singles[set.n_single++] = row;
      set.n_pages_single = std::max(set.n_pages_single, (span.position + i) / kPageTokens + 1);
    }
  }
  // Of the spans that end last first, and each from its end on: the dearest first, and those of a sequence together.
  std::vector<const AttentionSpan*> tiled;
  for (const AttentionSpan& span : spans) {
    if (span.n_rows >= kTiledRows) tiled.push_back(&span);
  }
  std::stable_sort(tiled.begin(), tiled.end(), [](const AttentionSpan* a, const AttentionSpan* b) {
    return a->position + a->n_rows > b->position + b->n_rows;
  });
  for (const AttentionSpan* span : tiled) {
    const int64_t last = (span->position + span->n_rows - 1) / kPageTokens;
    set.reads_codes = set.reads_codes || std::min(last - kExactTail, span->exact_from - 1) >= 1;
    set.reads_exactly = set.reads_exactly || span->exact_from <= last;
    for (int64_t i = (span->n_rows - 1) / kTileRows * kTileRows; i >= 0; i -= kTileRows) {
      tiles[set.n_tiles++] = {
          static_cast<int32_t>(span->row_begin + i), static_cast<int32_t>(std::min(kTileRows, span->n_rows - i)),
          static_cast<int32_t>(span->position + i), pages_of(*span), static_cast<int32_t>(span->exact_from)};
    }
  }
  set.alone = static_cast<size_t>(set.n_rows) == spans.size() && known_pages_.size() == sets_[0].n_spans;
  set.rows = reinterpret_cast<const RowOnDevice*>(device_.as<std::byte>() + rows_at);
  set.singles = reinterpret_cast<const RowOnDevice*>(device_.as<std::byte>() + singles_at);
  set.tiles = reinterpret_cast<const TileOnDevice*>(device_.as<std::byte>() + tiles_at);
}

void PassTables::make_one() {
  const RowSet& all = sets_[0];
  RowSet& wanted = sets_[1];
  if (all.n_single != all.n_rows || wanted.n_single != all.n_rows || wanted.n_rows != all.n_rows) return;
  const auto host = [&](const RowSet& set) {
    return host_.as<std::byte>() + (reinterpret_cast<const std::byte*>(set.rows) - device_.as<std::byte>());
  };
  if (std::memcmp(host(all), host(wanted), static_cast<size_t>(all.n_rows) * sizeof(RowOnDevice)) != 0) return;
  wanted.rows = all.rows;
  wanted.singles = all.singles;
}

bool PassTables::send(const PassRows& rows, cudaStream_t stream) {
  const int64_t n_rows =
      std::max({static_cast<int64_t>(rows.ids.size()), n_rows_of(rows.spans), n_rows_of(rows.wanted)});
  // The longest view of each page table; the wanted spans are parts of the others, but need not be.
  struct Table {
    const int32_t *pages, *exact;
    int64_t n;
  };
  std::vector<Table> tables;
  for (const auto& spans : {rows.spans, rows.wanted}) {
    for (const AttentionSpan& span : spans) {
      const auto same =
          std::find_if(tables.begin(), tables.end(), [&](const Table& t) { return t.pages == span.pages; });
      if (same == tables.end()) {
        tables.push_back({span.pages, span.exact, n_pages_of(span)});
      } else {
        same->n = std::max(same->n, n_pages_of(span));
      }
    }
  }
  int64_t n_pages = 0;
  for (const Table& table : tables) n_pages += table.n;
  const bool moved = reserve(n_rows, n_pages, stream);

  std::byte* host = host_.as<std::byte>();
  if (!rows.ids.empty()) std::memcpy(host, rows.ids.data(), rows.ids.size_bytes());
  caller_ids_ = rows.ids.data();
  n_ids_ = rows.ids.size();
  int32_t* pages = reinterpret_cast<int32_t*>(host + row_bytes());
  known_pages_.clear();
  int64_t at = 0, exact_at = 0;  // what is sent of either
  for (const Table& table : tables) {
    std::copy_n(table.pages, table.n, pages + at);
    if (table.exact) std::copy_n(table.exact, table.n, pages + page_capacity_ + at);
    known_pages_.emplace_back(table.pages, static_cast<int32_t>(at));
    at += table.n;
    if (table.exact) exact_at = page_capacity_ + at;
  }
  pages_ = reinterpret_cast<const int32_t*>(device_.as<std::byte>() + row_bytes());
  list(rows.spans, 0);
  list(rows.wanted, 1);
  make_one();
  check(cudaMemcpyAsync(device_.as<std::byte>(), host, row_bytes() + static_cast<uint64_t>(std::max(at, exact_at)) * 4,
                        cudaMemcpyHostToDevice, stream),
        "send the pass");
  return moved;
}

const RowSet& PassTables::find(std::span<const AttentionSpan> spans) const {
  for (const RowSet& set : sets_) {
    if (set.spans == spans.data() && set.n_spans == spans.size()) return set;
  }
  throw Error(ErrorKind::bug, str("an op got ", spans.size(), " spans that are neither the pass's ", sets_[0].n_spans,
                                  " nor its ", sets_[1].n_spans, " wanted ones"));
}

const int32_t* PassTables::ids(std::span<const int> ids) const {
  if (ids.data() != caller_ids_ || ids.size() != n_ids_) {
    throw Error(ErrorKind::bug, str("embed got ", ids.size(), " ids that are not the ", n_ids_, " of the pass"));
  }
  return device_.as<int32_t>();
}

}  // namespace firstlight::cuda
