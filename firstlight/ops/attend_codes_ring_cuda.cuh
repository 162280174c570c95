// SPDX-License-Identifier: Apache-2.0
// The way of a block's pages into shared memory: each warp has a ring of its own, which no other touches, and takes
// every so-many-th page of codes of a part, then of its exact pages every so-many-th piece of 16 tokens. Each comes
// whole or as two halves, keys, then values and all scales; one that was read makes room for the one kDeep on, of this
// part or the next.
#pragma once
#include "firstlight/ops/attend_codes_join_cuda.cuh"
#include "firstlight/ops/cuda_ptx.cuh"

namespace firstlight::cuda {

template <int kDim, int kKeyBits, int kValueBits, int kSets>
class CodeRing {
 public:
  static constexpr tq::PageShape kShape{kDim, kKeyBits, kValueBits};
  static constexpr bool kWhole = comes_whole(kShape);
  static constexpr int kKeys = kShape.values_at(), kRest = kShape.bytes() - kKeys;
  static constexpr int kPitch = ring_pitch(kShape), kWarps = code_warps(kShape, kSets), kDeep = ring_depth(kShape);
  static constexpr int kBytes = kWarps * kDeep * kPitch;  ///< of a block
  static constexpr int kPiece = kPieceTokens * kDim * 2;
  static_assert(kKeys % 16 == 0 && kRest % 16 == 0);
  static_assert(kWhole ? kPiece <= kKeys && kPiece <= kRest : kPiece <= kPitch);

  /// `slots`: kBytes of shared memory, on a multiple of 128.
  template <class Shared>
  __device__ CodeRing(const CodeSinglesParams& p, Shared& shared, uint8_t* slots)
      : p_(p),
        barriers_(shared.full[threadIdx.x / 32]),
        asked_(shared.asked[threadIdx.x / 32]),
        slots_(slots + threadIdx.x / 32 * (kDeep * kPitch)) {
    if (threadIdx.x % 32 < kDeep) barriers_[threadIdx.x % 32].init(1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncwarp();
  }

  /// Goes on with the block's `n` parts; all before have been released.
  __device__ void begin(const RowPart* parts, int n) {
    if (threadIdx.x % 32 != 0) return;
    asked_.next = parts, asked_.end = parts + n, asked_.left = asked_.piece = asked_.n_pieces = asked_.n_begun = 0;
    fetch_number();
  }
  /// The first pages on their way, up to one that this pass may write unless these are written.
  __device__ void ask_first(bool all_are_written) {
    if (threadIdx.x % 32 != 0) return;
    for (int i = asked_.n_begun; i < kDeep && (all_are_written || asked_.is_old || (!kWhole && i % 2 == 1)); ++i) {
      ask((slot_ + i) % kDeep, i % 2);
      asked_.n_begun = i + 1;
    }
  }
  /// Pages of codes of the warp in a part.
  static __device__ __forceinline__ int n_of(const RowPart& part) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    return max(0, (part.end - part.begin - warp + kWarps - 1) / kWarps);
  }
  /// Of the part's pieces of exact pages the warp's first one; kWarps on is its next.
  static __device__ __forceinline__ int first_piece(const RowPart& part) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    return (warp + kWarps - (part.end - part.begin) % kWarps) % kWarps;
  }
  /// Where the next keys (kWhich 0), then the rest (1), are, when they have come.
  template <int kWhich>
  __device__ __forceinline__ const uint8_t* wait() {
    if constexpr (!kWhole || kWhich == 0) barriers_[slot_].wait(parity_);
    return slots_ + slot_ * kPitch + (kWhole && kWhich == 1 ? kKeys : 0);
  }
  /// They have been read. `seen` depends on all of it, in each lane, and is not kNever: a copy asked for while loads
  /// are under way might overtake them.
  template <int kWhich>
  __device__ __forceinline__ void release(int seen) {
    if constexpr (kWhole && kWhich == 0) return;
    if (__any_sync(kWholeWarp, seen != kNever))  // always, which the compiler does not know
      ask(slot_, kWhole ? 0 : (kWhich + kDeep) % 2);
    if (++slot_ == kDeep) slot_ = 0, parity_ ^= 1u;
  }
  static constexpr int kNever = 0x7fffffff;

 private:
  /// Lane 0: the number of the page behind the one that is asked for.
  __device__ __forceinline__ void fetch_number() {
    number_ = -1;
    asked_.is_old = true;
    while (asked_.left == 0) {
      if (asked_.piece < asked_.n_pieces) return fetch_piece();
      if (asked_.next == asked_.end) return;
      enter(*asked_.next++);
    }
    --asked_.left;
    number_ = __ldg(asked_.numbers);
    asked_.numbers += kWarps;
  }
  __device__ __forceinline__ void enter(const RowPart& part) {
    asked_.left = n_of(part);
    asked_.numbers = p_.codes.attend.pages + part.row.pages + part.begin + threadIdx.x / 32;
    asked_.head = reinterpret_cast<const uint8_t*>(p_.codes.attend.kv.data) + int64_t{part.kv_head} * kShape.bytes();
    asked_.stride = p_.codes.attend.kv.page_stride;
    asked_.to_values = 0;
    asked_.piece = first_piece(part), asked_.n_pieces = part.n_pieces;
  }
  __device__ __forceinline__ void fetch_piece() {
    const RowPart& part = asked_.next[-1];
    const KvLayer& kv = p_.codes.attend.kv;
    const int page =
        RowCut(p_.exact_units, part.row.position).exact_page(part.exact_begin + asked_.piece / kPagePieces);
    number_ = __ldg(p_.codes.exact + part.row.pages + page);
    asked_.head = reinterpret_cast<const uint8_t*>(kv.exact) +
                  (int64_t{part.kv_head} * kPagePieces + asked_.piece % kPagePieces) * kPiece;
    asked_.stride = kv.exact_stride;
    asked_.to_values = kv.n_kv_heads * kPagePieces * kPiece;
    asked_.piece += kWarps;
    asked_.is_old = (page + 1) * kPageTokens + kTiledRows <= part.row.position;
  }
  __device__ __forceinline__ void ask(int slot, int which) {
    if (threadIdx.x % 32 != 0) return;
    MemoryBarrier& barrier = barriers_[slot];
    const uint32_t to = shared_address(slots_ + slot * kPitch);
    if (kWhole || which == 0) {
      if (number_ < 0) {
        asked_.values = nullptr;
        return;
      }
      const uint8_t* keys = asked_.head + static_cast<uint64_t>(number_) * asked_.stride;
      const int to_values = asked_.to_values;
      if constexpr (kWhole) {
        barrier.arrive_and_expect(to_values == 0 ? kShape.bytes() : 2 * kPiece);
        copy_bulk(to, keys, to_values == 0 ? kShape.bytes() : kPiece, barrier, policy_read_once());
        if (to_values != 0) copy_bulk(to + kKeys, keys + to_values, kPiece, barrier, policy_read_once());
      } else {
        const unsigned bytes = to_values == 0 ? kKeys : kPiece;
        asked_.values = keys + (to_values == 0 ? kKeys : to_values);
        asked_.values_bytes = to_values == 0 ? kRest : kPiece;
        barrier.arrive_and_expect(bytes);
        copy_bulk(to, keys, bytes, barrier, policy_read_once());
      }
      fetch_number();
    } else if (asked_.values) {
      barrier.arrive_and_expect(asked_.values_bytes);
      copy_bulk(to, asked_.values, asked_.values_bytes, barrier, policy_read_once());
    }
  }

  const CodeSinglesParams& p_;
  MemoryBarrier* barriers_;
  AskedPages& asked_;
  uint8_t* slots_;
  int number_ = -1, slot_ = 0;
  unsigned parity_ = 0;
};

}  // namespace firstlight::cuda
