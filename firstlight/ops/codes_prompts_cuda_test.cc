// SPDX-License-Identifier: Apache-2.0
// Prompts over TurboQuant codes on a GPU: attention as the oracle has it over what the pages hold, and of the same bits
// however a prompt is cut.
#include "firstlight/ops/codes_cuda_testing.h"

namespace firstlight {
namespace {

using reference::CodeBatch;

class CodePromptsCuda : public reference::OfBothKinds<reference::CodesOnGpu> {
 protected:
  /// One sequence's rows as spans of so many rows each, the last number again and again. None is short enough to go row
  /// by row, if these are 8 and more and leave none shorter.
  static std::vector<AttentionSpan> cut(const AttentionSpan& whole, const std::vector<int64_t>& lengths) {
    std::vector<AttentionSpan> spans;
    for (int64_t at = 0; at < whole.n_rows;) {
      int64_t n = lengths[std::min(spans.size(), lengths.size() - 1)];
      if (whole.n_rows - at - n < 8) n = whole.n_rows - at;
      spans.push_back({whole.row_begin + at, n, whole.position + at, whole.pages, whole.exact});
      at += n;
    }
    return spans;
  }

  void check_cuts(int64_t n_rows, int64_t position, KvKind kind, int heads, int kv_heads, int d, bool centred) {
    SCOPED_TRACE(testing::Message() << n_rows << " rows at " << position << ", " << to_string(kind) << ", " << heads
                                    << " heads on " << kv_heads << " of " << d);
    const auto cpu_ops = cpu();
    CodeBatch batch({{n_rows, position}}, kind, heads, kv_heads, d, 1, *cpu_ops, false, 1000, centred);
    const std::vector<float> expected = attend(batch);
    compare(batch, expected);
    const AttentionSpan whole = batch.spans[0];
    for (const std::vector<int64_t>& lengths :
         {std::vector<int64_t>{512}, {100}, {37, 64}, {1000, 8}, {8, 9, 64}, {63, 65, 129}}) {
      batch.spans = cut(whole, lengths);
      reference::expect_same(attend(batch), expected, "attention in pieces");
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Kernels, CodePromptsCuda, testing::Bool(), reference::kind_name);

TEST_P(CodePromptsCuda, EqualSoftmaxForGroupsOfAllSizes) {
  for (const int d : {64, 128}) {
    for (const int group : {1, 2, 3, 4, 8}) {
      check({{70, 300}, {9, 250}, {150, 0}}, KvKind::tq4, group, 1, d);
      check({{70, 470}}, KvKind::tq4, 2 * group, 2, d, false, true);
    }
  }
}

TEST_P(CodePromptsCuda, EqualSoftmaxForEveryKindFromAnyRowOfAPageOn) {
  for (const KvKind kind : {KvKind::tq4, KvKind::k8v4, KvKind::tq8}) {
    for (const int d : {64, 128}) {
      for (const bool centred : {false, true}) {
        check({{64, 0}, {8, 0}, {65, 191}, {64, 192}, {20, 255}, {20, 256}, {129, 319}, {77, 700}}, kind, 4, 2, d,
              false, centred);
      }
    }
  }
}

TEST_P(CodePromptsCuda, RowsAreTheSameBitsHoweverAPromptIsCut) {
  check_cuts(700, 2345, KvKind::tq4, 8, 2, 128, true);
  check_cuts(900, 0, KvKind::tq4, 3, 1, 128, false);
  for (const KvKind kind : {KvKind::tq4, KvKind::k8v4, KvKind::tq8}) {
    check_cuts(500, 130, kind, 4, 2, 64, false);
    check_cuts(333, 517, kind, 2, 1, 128, true);
  }
}

/// Many tiles of one sequence in one pass, as long prompts have them.
TEST_P(CodePromptsCuda, LongOnesEqualSoftmax) {
  check({{1600, 1700}}, KvKind::tq4, 4, 1, 128);
  check({{130, 3001}}, KvKind::k8v4, 4, 1, 128);
}

/// Few rows of long sequences: what their blocks expand goes round the memory that they share many times.
TEST_P(CodePromptsCuda, FewRowsOfLongOnesEqualSoftmax) {
  check({{20, 6000}, {9, 1500}, {70, 4100}}, KvKind::tq4, 4, 1, 128);
  check({{20, 3000}, {64, 4300}}, KvKind::k8v4, 1, 1, 64);
}

/// What a pass computes may be read exactly by all of its rows; the pages before it, but for the first, are codes to
/// all.
TEST_P(CodePromptsCuda, EqualSoftmaxWhereAllRowsReadLatePagesExactly) {
  const auto cpu_ops = cpu();
  for (const KvKind kind : {KvKind::tq4, KvKind::k8v4, KvKind::tq8}) {
    for (const int d : {64, 128}) {
      CodeBatch batch({{300, 0}, {70, 900}, {513, 1535}, {64, 700}, {9, 440}}, kind, 4, 2, d, 1, *cpu_ops, false, 1000,
                      true, true);
      SCOPED_TRACE(testing::Message() << to_string(kind) << " d " << d);
      compare(batch, attend(batch));
    }
  }
}

/// Blocks wait for one another, so a launch has no more than the GPU holds.
TEST_P(CodePromptsCuda, AreTheSameBitsInHoweverManyLaunches) {
  const auto cpu_ops = cpu();
  for (const int d : {64, 128}) {
    CodeBatch batch({{2200, 900}, {300, 3000}, {64, 0}, {8, 2000}}, KvKind::tq4, 6, 2, d, 1, *cpu_ops);
    const std::vector<float> expected = attend(batch);
    compare(batch, expected);
    Ops* const whole = ops_;
    for (const int n_sharing : {2, 9, 1000}) {
      const auto few =
          make_cuda_ops(reference::kGpu, {.load_cublaslt = false, .any_gpu = GetParam(), .n_sharing = n_sharing});
      ops_ = few.get();
      ops_->begin({}, false);
      for (int again = 0; again < 2; ++again)
        reference::expect_same(attend(batch), expected, "attention by few blocks at a time");
      ops_->end();
      ops_ = whole;
    }
  }
}

}  // namespace
}  // namespace firstlight
