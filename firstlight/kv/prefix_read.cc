// SPDX-License-Identifier: Apache-2.0
#include "firstlight/kv/prefix_read.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/base/timeline.h"

namespace firstlight {

namespace {

/// What has a hash of its own, in the order of the file; padding has that of zeros.
struct HashedPage {
  enum class Kind { page, exact, padding };
  Kind kind = Kind::page;
  uint64_t offset = 0, size = 0, hash = 0;
  std::byte* into = nullptr;  // of padding host memory
  size_t rank = 0;
  int64_t page = 0;  // in the sequence

  bool goes_on(const HashedPage& before) const {
    return (kind == Kind::padding) == (before.kind == Kind::padding) && rank == before.rank &&
           offset == before.offset + before.size && into == before.into + before.size;
  }
};

/// A read, which ends in pages [first, last]: it may begin in the middle of one and end in that of another.
struct PageRequest {
  size_t first = 0, last = 0;
  uint64_t offset = 0, size = 0;
};

}  // namespace

// A request's completion takes it off its pages' counts; who takes the last one off hashes that page, or has it hashed,
// and compares. Then the request has ended. Nothing of this object is touched behind the last end.
struct PrefixRead::Impl {
  PrefixFile file;
  std::vector<ReadLane*> lanes;  // [tp]
  std::vector<HashedPage> pages;
  std::unique_ptr<std::byte[]> padding;
  std::atomic<bool> padding_is_lost{false};
  std::vector<PageRequest> requests;
  std::vector<std::atomic<uint32_t>> reads_left;  // [pages]
  std::atomic<size_t> n_unchecked{0};             // pages
  std::atomic<bool> failed{false};
  double begin_s = 0;

  std::mutex mutex;
  std::condition_variable changed;
  size_t n_running = 0;  // requests that have not ended
  double end_s = 0;
  std::exception_ptr failure;  // the first

  Impl(const PrefixFile& from, std::span<ReadLane* const> to) : file(from), lanes(to.begin(), to.end()) {}

  void list_pages(std::span<const RankPages> ranks, const PageTable& table);
  void cut_requests();
  void submit();
  void on_done(size_t request, int64_t result);
  void take(const std::vector<size_t>& whole, std::span<const uint64_t> hashes);
  void fail(const std::exception_ptr& cause);
  void end_request();
  void wait_for_requests();
  void cancel();
  std::exception_ptr read_failure(const PageRequest& request, int64_t result) const;
  std::string text(const HashedPage& page) const;
};

void PrefixRead::Impl::list_pages(std::span<const RankPages> ranks, const PageTable& table) {
  const PrefixHead& head = file.head();
  const PrefixInfo& info = head.info;
  const std::vector<std::byte> zeros(kPrefixAlignment);
  padding = std::make_unique<std::byte[]>(2 * kPrefixAlignment * ranks.size());
  std::byte* next_padding = padding.get();
  const auto add_padding = [&](int r, uint64_t begin) {
    const uint64_t size = (kPrefixAlignment - begin % kPrefixAlignment) % kPrefixAlignment;
    if (size == 0) return;
    pages.push_back({HashedPage::Kind::padding, begin, size, xxh3_64(std::span(zeros).first(size)), next_padding,
                     static_cast<size_t>(r), 0});
    next_padding += kPrefixAlignment;
  };
  for (int r = 0; r < info.tp; ++r) {
    const RankPages& rank = ranks[static_cast<size_t>(r)];
    for (int64_t page = 0; page < info.n_pages(); ++page) {
      pages.push_back({HashedPage::Kind::page, head.page_at(r, page), rank.page_bytes, head.page_hash(r, page),
                       page_of(rank, table, page), static_cast<size_t>(r), page});
    }
    add_padding(r, head.section_end(r, /*exact=*/false));
    for (int64_t i = 0; i < info.n_exact(); ++i) {
      const int64_t page = info.exact_page(i);
      pages.push_back({HashedPage::Kind::exact, head.exact_at(r, i), rank.exact_page_bytes, head.exact_hash(r, i),
                       exact_of(rank, table, page), static_cast<size_t>(r), page});
    }
    add_padding(r, head.section_end(r, /*exact=*/true));
  }
  reads_left = std::vector<std::atomic<uint32_t>>(pages.size());
  n_unchecked = pages.size();
}

/// Pages that lie side by side in the file and in the pool are one run, cut without regard to pages: where a run
/// begins, as a rule, a section does, and reads past the page cache want multiples of its alignment.
void PrefixRead::Impl::cut_requests() {
  for (size_t first = 0, end; first < pages.size(); first = end) {
    for (end = first + 1; end < pages.size() && pages[end].goes_on(pages[end - 1]);) ++end;
    const uint64_t run_end = pages[end - 1].offset + pages[end - 1].size;
    const uint64_t step = lanes[pages[first].rank]->request_bytes();
    size_t page = first;
    for (uint64_t at = pages[first].offset; at < run_end; at += step) {
      const uint64_t size = std::min(step, run_end - at);
      while (pages[page].offset + pages[page].size <= at) ++page;
      size_t last = page;
      while (pages[last].offset + pages[last].size < at + size) ++last;
      for (size_t i = page; i <= last; ++i) reads_left[i].fetch_add(1, std::memory_order_relaxed);
      requests.push_back({page, last, at, size});
    }
  }
}

void PrefixRead::Impl::submit() {
  std::vector<std::vector<ReadRequest>> of_lane(lanes.size()), to_host(lanes.size());  // by the lane's first rank
  for (size_t i = 0; i < requests.size(); ++i) {
    const PageRequest& request = requests[i];
    const HashedPage& page = pages[request.first];
    const auto lane = std::find(lanes.begin(), lanes.end(), lanes[page.rank]) - lanes.begin();
    auto& list = page.kind == HashedPage::Kind::padding ? to_host : of_lane;
    list[static_cast<size_t>(lane)].push_back(
        {i, file.file(), request.offset, request.size, page.into + (request.offset - page.offset)});
  }
  n_running = requests.size();
  begin_s = seconds_since_exec();
  const ReadCallback callback = [this](const ReadCompletion& done) { on_done(done.id, done.result); };
  size_t n_submitted = 0;
  try {
    for (size_t i = 0; i < lanes.size(); ++i) {
      if (!of_lane[i].empty()) lanes[i]->reader->submit(of_lane[i], callback);
      n_submitted += of_lane[i].size();
      if (!to_host[i].empty()) lanes[i]->host_reader().submit(to_host[i], callback);
      n_submitted += to_host[i].size();
    }
  } catch (...) {  // no memory: what is under way still calls back here
    {
      const std::lock_guard lock(mutex);
      n_running -= requests.size() - n_submitted;
    }
    cancel();
    wait_for_requests();
    throw;
  }
}

/// On a thread of the lane's reader.
void PrefixRead::Impl::on_done(size_t index, int64_t result) {
  const PageRequest& request = requests[index];
  if (result == -ETIMEDOUT && pages[request.first].kind == HashedPage::Kind::padding) padding_is_lost = true;
  try {
    if (result != static_cast<int64_t>(request.size)) std::rethrow_exception(read_failure(request, result));
    std::vector<size_t> whole;
    std::vector<LeafBytes> bytes;
    for (size_t i = request.first; i <= request.last; ++i) {
      if (reads_left[i].fetch_sub(1, std::memory_order_acq_rel) != 1) continue;
      whole.push_back(i);
      bytes.push_back({pages[i].into, pages[i].size});
    }
    const HashedPage& page = pages[request.first];
    LeafChecks* const checks = page.kind == HashedPage::Kind::padding ? nullptr : lanes[page.rank]->checks.get();
    if (checks != nullptr && !whole.empty() && !failed.load(std::memory_order_relaxed)) {
      checks->add(std::move(bytes), [this, whole](std::span<const uint64_t> hashes, const std::exception_ptr& cause) {
        if (cause) fail(cause);
        if (!cause) take(whole, hashes);
        end_request();
      });
      return;
    }
    std::vector<uint64_t> hashes;  // of bytes that are in this core's cache
    for (const LeafBytes& one : bytes) {
      if (!failed.load(std::memory_order_relaxed)) hashes.push_back(xxh3_64({one.data, one.size}));
    }
    if (hashes.size() == whole.size()) take(whole, hashes);
  } catch (...) {
    fail(std::current_exception());
  }
  end_request();
}

void PrefixRead::Impl::take(const std::vector<size_t>& whole, std::span<const uint64_t> hashes) try {
  for (size_t i = 0; i < whole.size(); ++i) {
    const HashedPage& page = pages[whole[i]];
    if (hashes[i] != page.hash) {
      fail(std::make_exception_ptr(
          Error(ErrorKind::damaged, str(text(page), ": XXH3-64 is ", std::hex, hashes[i], ", expected ", page.hash))));
      return;
    }
    n_unchecked.fetch_sub(1, std::memory_order_relaxed);
  }
} catch (...) {
  fail(std::current_exception());
}

void PrefixRead::Impl::fail(const std::exception_ptr& cause) {
  const std::lock_guard lock(mutex);
  if (!failure) failure = cause;
  failed = true;
}

void PrefixRead::Impl::end_request() {
  const std::lock_guard lock(mutex);
  if (--n_running > 0) return;
  end_s = seconds_since_exec();
  changed.notify_all();  // under the mutex: who waits may destroy it
}

void PrefixRead::Impl::wait_for_requests() {
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return n_running == 0; });
}

void PrefixRead::Impl::cancel() {
  for (ReadLane* lane : lanes) lane->reader->cancel();
}

std::exception_ptr PrefixRead::Impl::read_failure(const PageRequest& request, int64_t result) const {
  const HashedPage& page = pages[request.first];
  const DeviceReader* on_device = lanes[page.rank]->on_device;
  if (result == -EREMOTEIO && on_device != nullptr && on_device->failure()) return on_device->failure();
  const std::string what =
      str("'", file.file()->path(), "' bytes [", request.offset, ", ", request.offset + request.size, ") (rank ",
          page.rank, ", from token ", page.page * kPageTokens, " on)");
  if (result == -ENODATA) return std::make_exception_ptr(Error(ErrorKind::damaged, what + ": the file ends before"));
  const std::string why = result == -ETIMEDOUT   ? "not there within the deadline"
                          : result == -ECANCELED ? "cancelled"
                                                 : std::generic_category().message(static_cast<int>(-result));
  return std::make_exception_ptr(Error(ErrorKind::io, str("read ", what, ": ", why)));
}

std::string PrefixRead::Impl::text(const HashedPage& page) const {
  const std::string range =
      str("'", file.file()->path(), "' bytes [", page.offset, ", ", page.offset + page.size, ") (rank ", page.rank);
  if (page.kind == HashedPage::Kind::padding) return range + ", zeros that pad pages)";
  return str(range, ", tokens ", page.page * kPageTokens, " to ", (page.page + 1) * kPageTokens - 1,
             page.kind == HashedPage::Kind::exact ? ", in bf16)" : ")");
}

PrefixRead::PrefixRead(const PrefixFile& file, std::span<ReadLane* const> lanes, std::span<const RankPages> ranks,
                       const PageTable& table)
    : impl_(std::make_unique<Impl>(file, lanes)) {
  require_fits(file.info(), ranks, table);
  if (lanes.size() != ranks.size())
    throw Error(ErrorKind::bug, str("lanes for ", lanes.size(), " ranks of ", ranks.size()));
  impl_->list_pages(ranks, table);
  impl_->cut_requests();
  impl_->submit();
}

PrefixRead::~PrefixRead() {
  bool running = false;
  {
    const std::lock_guard lock(impl_->mutex);
    running = impl_->n_running > 0;
  }
  if (running) impl_->cancel();
  impl_->wait_for_requests();
  // A read that the deadline gave up may still be written to by the kernel: a few pages are left behind for it.
  if (impl_->padding_is_lost) static_cast<void>(impl_->padding.release());
}

PrefixRead::Report PrefixRead::wait(const std::stop_token& stop) {
  {
    const std::stop_callback cancel(stop, [this] { impl_->cancel(); });
    impl_->wait_for_requests();
  }
  if (stop.stop_requested()) throw Interrupted();
  if (impl_->failure) std::rethrow_exception(impl_->failure);
  if (impl_->n_unchecked != 0)
    throw Error(ErrorKind::bug, str(impl_->n_unchecked.load(), " pages of a prefix were not checked"));
  const PrefixFile& file = impl_->file;
  file.file()->check_unchanged();
  return {file.head().file_bytes() - file.head().head_bytes(), impl_->begin_s, impl_->end_s};
}

}  // namespace firstlight
