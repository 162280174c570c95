// SPDX-License-Identifier: Apache-2.0
#include "firstlight/kv/prefix_file.h"

#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/io/mount.h"

namespace firstlight {

std::byte* page_of(const RankPages& rank, const PageTable& table, int64_t page) {
  return rank.pages + static_cast<uint64_t>(table.pages()[static_cast<size_t>(page)]) * rank.page_bytes;
}

std::byte* exact_of(const RankPages& rank, const PageTable& table, int64_t page) {
  return rank.exact + static_cast<uint64_t>(table.exact()[static_cast<size_t>(page)]) * rank.exact_page_bytes;
}

void require_fits(const PrefixInfo& info, std::span<const RankPages> ranks, const PageTable& table) {
  const bool has_ranks =
      static_cast<int>(ranks.size()) == info.tp && std::all_of(ranks.begin(), ranks.end(), [&](const RankPages& rank) {
        return rank.page_bytes == info.page_bytes() &&
               (info.n_exact() == 0 || rank.exact_page_bytes == info.exact_page_bytes());
      });
  bool has_pages = static_cast<int64_t>(table.pages().size()) >= info.n_pages();
  for (int64_t i = 0; has_pages && i < info.n_exact(); ++i) {
    has_pages = table.exact().size() > static_cast<size_t>(info.exact_page(i)) &&
                table.exact()[static_cast<size_t>(info.exact_page(i))] >= 0;
  }
  if (has_ranks && has_pages) return;
  throw Error(ErrorKind::bug, str("a prefix of ", info.n_pages(), " pages of ", info.page_bytes(), " bytes on ",
                                  info.tp, " ranks, and a cache that is another"));
}

PrefixFile::PrefixFile(const fs::path& path) : file_(File::open(path)) {
  std::vector<std::byte> head(static_cast<size_t>(std::min(kPrefixFixedBytes, file_->size())));
  file_->read(0, head);
  const uint64_t n = prefix_head_bytes(head, file_->size(), file_->path());
  head.resize(static_cast<size_t>(n));
  file_->read(0, head);
  head_ = parse_prefix_head(head, file_->size(), file_->path());
  if (lies_on_nfs(path)) file_->turn_off_read_ahead();  // it would fetch twice, as of a load's files
}

}  // namespace firstlight
