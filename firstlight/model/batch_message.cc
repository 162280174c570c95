// SPDX-License-Identifier: Apache-2.0
// Whole numbers of 8 bytes: [kind, ids, spans], the ids, then of each span [row_begin, n_rows, position, wanted rows,
// has exact pages], its pages and its exact pages. A token in a context of 131,072 takes 16 KB of them.
#include "firstlight/model/batch_message.h"

#include <cstring>

#include "firstlight/base/error.h"

namespace firstlight {

namespace {

/// Pages that hold the tokens before and in the span.
size_t pages_of(const AttentionSpan& span) {
  return static_cast<size_t>((span.position + span.n_rows + kPageTokens - 1) / kPageTokens);
}

class Words {
 public:
  void put(int64_t word) { words_.push_back(word); }
  void put(const int32_t* numbers, size_t n) { words_.insert(words_.end(), numbers, numbers + n); }
  std::vector<std::byte> bytes() const {
    std::vector<std::byte> bytes(words_.size() * sizeof(int64_t));
    std::memcpy(bytes.data(), words_.data(), bytes.size());
    return bytes;
  }

 private:
  std::vector<int64_t> words_;
};

class Cursor {
 public:
  explicit Cursor(const std::vector<std::byte>& bytes) : bytes_(bytes) {}
  size_t left() const { return (bytes_.size() - at_) / sizeof(int64_t); }
  int64_t take() {
    if (left() == 0) fail();
    int64_t word = 0;
    std::memcpy(&word, bytes_.data() + at_, sizeof word);
    at_ += sizeof word;
    return word;
  }
  /// A number of things of which as many words are still to come.
  size_t take_count() {
    const int64_t n = take();
    if (n < 0 || static_cast<size_t>(n) > left()) fail();
    return static_cast<size_t>(n);
  }
  std::vector<int32_t> take_numbers(size_t n) {
    if (n > left()) fail();
    std::vector<int32_t> numbers;
    for (size_t i = 0; i < n; ++i) numbers.push_back(static_cast<int32_t>(take()));
    return numbers;
  }
  [[noreturn]] static void fail() { throw Error(ErrorKind::bug, "rank 0 sent a batch that cannot be read"); }

 private:
  const std::vector<std::byte>& bytes_;
  size_t at_ = 0;
};

}  // namespace

std::vector<std::byte> batch_message(PassKind kind, const Batch& batch) {
  Words words;
  words.put(static_cast<int64_t>(kind));
  words.put(static_cast<int64_t>(batch.ids.size()));
  words.put(static_cast<int64_t>(batch.spans.size()));
  words.put(batch.ids.data(), batch.ids.size());
  auto wanted = batch.wanted.begin();
  for (const AttentionSpan& span : batch.spans) {
    const bool is_wanted = wanted != batch.wanted.end() && wanted->row_begin < span.row_begin + span.n_rows;
    words.put(span.row_begin);
    words.put(span.n_rows);
    words.put(span.position);
    words.put(is_wanted ? wanted->n_rows : 0);
    words.put(span.exact != nullptr ? 1 : 0);
    words.put(span.exact_from);
    words.put(span.pages, pages_of(span));
    if (span.exact != nullptr) words.put(span.exact, pages_of(span));
    if (is_wanted) ++wanted;
  }
  return words.bytes();
}

ReceivedBatch read_batch_message(const std::vector<std::byte>& bytes) {
  Cursor words(bytes);
  ReceivedBatch received;
  received.kind = static_cast<PassKind>(words.take());
  const size_t n_ids = words.take_count(), n_spans = words.take_count();
  received.batch.ids = words.take_numbers(n_ids);
  for (size_t i = 0; i < n_spans; ++i) {
    AttentionSpan span;
    span.row_begin = words.take();
    span.n_rows = words.take();
    span.position = words.take();
    const int64_t n_wanted = words.take();
    const bool has_exact = words.take() != 0;
    span.exact_from = words.take();
    if (span.row_begin < 0 || span.n_rows < 1 || span.position < 0 || n_wanted < 0 || span.exact_from < 0 ||
        n_wanted > span.n_rows || span.row_begin + span.n_rows > static_cast<int64_t>(n_ids)) {
      Cursor::fail();
    }
    span.pages = received.pages.emplace_back(words.take_numbers(pages_of(span))).data();
    if (has_exact) span.exact = received.exact.emplace_back(words.take_numbers(pages_of(span))).data();
    received.batch.spans.push_back(span);
    if (n_wanted == 0) continue;
    const int64_t skipped = span.n_rows - n_wanted;
    received.batch.wanted.push_back(
        {span.row_begin + skipped, n_wanted, span.position + skipped, span.pages, span.exact, span.exact_from});
    received.n_wanted += n_wanted;
  }
  return received;
}

}  // namespace firstlight
