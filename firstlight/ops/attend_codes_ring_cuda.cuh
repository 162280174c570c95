// SPDX-License-Identifier: Apache-2.0
// The way of a part's pages of codes into shared memory: each warp has a ring of its own, which no other touches, and
// takes every so-many-th page. A page comes as two bulk copies: keys, then values and all scales; a half that was
// read makes room for the one kDeep on.
#pragma once
#include "firstlight/ops/attend_codes_join_cuda.cuh"

namespace firstlight::cuda {

template <int kDim, int kKeyBits, int kValueBits, int kSets>
class CodeRing {
 public:
  static constexpr tq::PageShape kShape{kDim, kKeyBits, kValueBits};
  static constexpr int kKeys = kShape.values_at(), kRest = kShape.bytes() - kKeys;
  static constexpr int kPitch = ring_pitch(kShape), kWarps = code_warps(kShape, kSets);
  static constexpr int kDeep = ring_depth(kShape, kSets), kBytes = kWarps * kDeep * kPitch;  ///< bytes: of a block
  static_assert(kKeys % 16 == 0 && kRest % 16 == 0 && kDeep <= kMostDeep);

  /// `slots`: kBytes of shared memory, on a multiple of 128.
  __device__ CodeRing(const CodeSinglesParams& p, CodeShared<kDim, kWarps>& shared, uint8_t* slots)
      : p_(p), barriers_(shared.full[threadIdx.x / 32]), slots_(slots + threadIdx.x / 32 * (kDeep * kPitch)) {
    if (threadIdx.x % 32 < kDeep) barriers_[threadIdx.x % 32].init(1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncwarp();
  }

  /// The first halves of the warp's pages of a part on their way. All pages of the part before have been released, and
  /// what else was written where they lay is behind a fence of the asynchronous proxy and a barrier.
  __device__ void begin(const CodePart& part) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    numbers_ = p_.codes.attend.pages + part.row.pages + part.begin + warp;
    head_ = reinterpret_cast<const uint8_t*>(p_.codes.attend.kv.data) + int64_t{part.kv_head} * kShape.bytes();
    n_ = max(0, (part.end - part.begin - warp + kWarps - 1) / kWarps);
    if (lane < kDeep && lane / 2 < n_) ask((slot_ + lane) % kDeep, number(lane / 2), lane % 2);
    next_ = number(kDeep / 2);
    after_ = number(kDeep / 2 + 1);
  }
  /// Pages of the warp.
  __device__ __forceinline__ int n() const { return n_; }
  /// Where the next half is, keys (kWhich 0) or the rest (1), when it has come.
  template <int kWhich>
  __device__ __forceinline__ const uint8_t* wait() {
    barriers_[slot<kWhich>()].wait(parity_);
    return slots_ + slot<kWhich>() * kPitch;
  }
  /// That half of the warp's page i has been read. `seen` depends on all of it, in each
  /// lane, and is not kNever: a copy asked for while loads are under way might overtake them.
  template <int kWhich>
  __device__ __forceinline__ void release(int i, int seen) {
    constexpr int kAhead = kWhich + kDeep;
    const bool is_read = __any_sync(kWholeWarp, seen != kNever);  // always, which the compiler does not know
    if (is_read && i + kAhead / 2 < n_ && threadIdx.x % 32 == 0) ask(slot<kWhich>(), next_, kAhead % 2);
    if constexpr (kAhead % 2 == 1) {
      next_ = after_;
      after_ = number(i + kAhead / 2 + 2);
    }
    if constexpr (kDeep == 2) {
      parity_ ^= kWhich;
    } else if (++slot_ == kDeep) {
      slot_ = 0, parity_ ^= 1u;
    }
  }
  static constexpr int kNever = 0x7fffffff;

 private:
  template <int kWhich>
  __device__ __forceinline__ int slot() const {
    return kDeep == 2 ? kWhich : slot_;
  }
  __device__ __forceinline__ int number(int i) const { return i < n_ ? __ldg(numbers_ + i * kWarps) : 0; }
  __device__ __forceinline__ void ask(int slot, int number, int which) {
    const uint8_t* from =
        head_ + static_cast<uint64_t>(static_cast<uint32_t>(number)) * p_.codes.attend.kv.page_stride + which * kKeys;
    const unsigned bytes = which == 0 ? kKeys : kRest;
    barriers_[slot].arrive_and_expect(bytes);
    copy_bulk(shared_address(slots_ + slot * kPitch), from, bytes, barriers_[slot], policy_);
  }

  const CodeSinglesParams& p_;
  MemoryBarrier* barriers_;
  uint8_t* slots_;
  const int32_t* numbers_ = nullptr;
  const uint8_t* head_ = nullptr;  ///< of page 0
  uint64_t policy_ = policy_read_once();
  int n_ = 0, slot_ = 0, next_ = 0, after_ = 0;  ///< next, after: numbers of the pages to be asked for
  unsigned parity_ = 0;
};

}  // namespace firstlight::cuda
