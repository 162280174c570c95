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
        parts_(shared.parts),
        asked_(shared.asked[threadIdx.x / 32]),
        barriers_(shared.full[threadIdx.x / 32]),
        slots_(slots + threadIdx.x / 32 * (kDeep * kPitch)) {
    if (threadIdx.x % 32 < kDeep) barriers_[threadIdx.x % 32].init(1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncwarp();
  }

  /// Goes on with the block's first `n` parts that are known; all before have been released. One item is prepared: the
  /// number of the next is on its way while that is asked for, so that all warps' first pages come before any second
  /// one.
  __device__ void begin(int n) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) asked_ = {0, n, 0};
    __syncwarp();
    n_begun_ = 0;
    prepare(1);
  }
  /// The first pages on their way, up to one that this pass may write unless these are written.
  __device__ void ask_first(bool all_are_written) {
    for (; n_begun_ < kDeep && at_ < n_; ++n_begun_) {
      if (!all_are_written && (kWhole || n_begun_ % 2 == 0) && !__shfl_sync(kWholeWarp, is_old_, at_)) break;
      ask((slot_ + n_begun_) % kDeep, kWhole ? 0 : n_begun_ % 2);
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
  /// The warp's next items, up to `most` (32) of a part: one a lane, whose page's number is known by the time it is
  /// asked for.
  __device__ __forceinline__ void prepare(int most) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    AskedItems now = asked_;
    int n_codes = 0, first = 0;
    for (n_ = at_ = 0; now.part < now.n_parts; ++now.part, now.item = 0) {
      const RowPart& part = parts_[now.part];
      n_codes = n_of(part), first = first_piece(part);
      n_ = min(most, n_codes + max(0, (part.n_pieces - first + kWarps - 1) / kWarps) - now.item);
      if (n_ > 0) break;
    }
    if ((n_ = max(0, n_)) == 0) return;
    const RowPart& part = parts_[now.part];
    const int item = now.item + lane;
    is_old_ = true;
    if (item < n_codes) {
      number_ = __ldg(p_.codes.attend.pages + part.row.pages + part.begin + threadIdx.x / 32 + item * kWarps);
      offset_ = part.kv_head * kShape.bytes();
    } else if (lane < n_) {
      prepare_piece(part, first + (item - n_codes) * kWarps);
    }
    __syncwarp();
    if (lane == 0) asked_.part = now.part, asked_.item = now.item + n_;
    __syncwarp();
  }
  __device__ __forceinline__ void prepare_piece(const RowPart& part, int piece) {
    const int page = RowCut(p_.exact_units, part.row.position).exact_page(part.exact_begin + piece / kPagePieces);
    number_ = ~__ldg(p_.codes.exact + part.row.pages + page);
    offset_ = (part.kv_head * kPagePieces + piece % kPagePieces) * kPiece;
    is_old_ = (page + 1) * kPageTokens + kTiledRows <= part.row.position;
  }
  __device__ __forceinline__ void ask(int slot, int which) {
    if (at_ == n_) return;
    if (static_cast<int>(threadIdx.x) % 32 == at_) number_ < 0 ? ask_exact(slot, which) : ask_codes(slot, which);
    if ((kWhole || which == 1) && ++at_ == n_) prepare(32);
  }
  __device__ __forceinline__ void ask_codes(int slot, int which) {
    const KvLayer& kv = p_.codes.attend.kv;
    const unsigned bytes = kWhole ? kShape.bytes() : which == 0 ? kKeys : kRest;
    const auto* from = reinterpret_cast<const uint8_t*>(kv.data) + static_cast<uint64_t>(number_) * kv.page_stride;
    barriers_[slot].arrive_and_expect(bytes);
    copy_bulk(shared_address(slots_ + slot * kPitch), from + offset_ + (which == 0 ? 0 : kKeys), bytes, barriers_[slot],
              policy_read_once());
  }
  __device__ __forceinline__ void ask_exact(int slot, int which) {
    const KvLayer& kv = p_.codes.attend.kv;
    const uint32_t to = shared_address(slots_ + slot * kPitch), to_values = kv.n_kv_heads * kPagePieces * kPiece;
    const auto* from = reinterpret_cast<const uint8_t*>(kv.exact) + static_cast<uint64_t>(~number_) * kv.exact_stride;
    barriers_[slot].arrive_and_expect(kWhole ? 2 * kPiece : kPiece);
    copy_bulk(to, from + offset_ + (which == 0 ? 0 : to_values), kPiece, barriers_[slot], policy_read_once());
    if (kWhole) copy_bulk(to + kKeys, from + offset_ + to_values, kPiece, barriers_[slot], policy_read_once());
  }

  const CodeSinglesParams& p_;
  const RowPart* parts_;
  AskedItems& asked_;
  MemoryBarrier* barriers_;
  uint8_t* slots_;
  int number_ = 0, offset_ = 0;  ///< of the lane's item: its page's number, or ~ of an exact page's; where in the page
  int at_ = 0, n_ = 0;           ///< the item to ask for next; how many lanes have one
  int slot_ = 0, n_begun_ = 0;   ///< n_begun_: slots that were asked for before any was released
  unsigned parity_ = 0;
  bool is_old_ = true;  ///< this pass does not write the lane's item
};

}  // namespace firstlight::cuda
