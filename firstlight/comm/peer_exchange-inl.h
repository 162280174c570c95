// SPDX-License-Identifier: Apache-2.0
// How ranks that see each other's memory exchange sums: one text for a GPU's kernels and for threads of a host, on
// which tests run it. `Here` says what a thread is and how it touches memory that others write:
//   thread(), n_threads(), block(), n_blocks()   which of how many; a host thread is a block of one thread
//   sync(), all(mine)                            all threads of the block; whether all of them say true
//   load(p), store(p, words)                     four words that signal themselves: each is whole and never stale
//   read(data, i, n), write(data, i, n, words)   vector i of n floats, behind signals
//   signal(p, value), signalled(p)               one word; what came before is seen by whoever sees the value
//   arrive(p)                                    adds one to a word of this rank's own, returns what was there
//   given_up(call, polls)                        whether to wait no longer: the rest of the exchange is left out
#pragma once
#include <cstdint>

#include "firstlight/base/host_device.h"

#if defined(__CUDA_ARCH__)
#define FIRSTLIGHT_UNROLL _Pragma("unroll")
#else
#define FIRSTLIGHT_UNROLL
#endif

namespace firstlight::peer {

inline constexpr int kMaxRanks = 8, kMaxBlocks = 128;
inline constexpr uint32_t kNothing = 0xffffffffu;  ///< a word of an inbox that nobody has written; of floats a NaN
/// Floats that a rank can send to all others by their inboxes: a place for one sender is this over the number of
/// others. On two H200 64 rows of 4096 take 5.6 us by them and 9.9 in place, 256 rows 14.6 and 18.6.
inline constexpr int64_t kInboxFloats = 1 << 20;
/// Of one sender and one of the two halves, a multiple of 4; an inbox has 2 * size of them.
FIRSTLIGHT_HD constexpr int64_t place_floats(int size) { return kInboxFloats / (size - 1) / 4 * 4; }

/// Four floats as their bits.
struct alignas(16) Words {
  uint32_t word[4];
};

/// A rank's words that the others signal, and the two of its own.
struct Signals {
  uint32_t started[kMaxRanks];           ///< by each rank: the last exchange that it has begun …
  uint32_t done[kMaxRanks][kMaxBlocks];  ///< … and that a block of it has finished
  uint32_t epoch;                        ///< exchanges done: counted by the kernels, so that a recorded one counts on
  uint32_t arrived;                      ///< blocks of the exchange under way that are done
};

/// One exchange as one rank sees it; all pointers but `stop` are device memory.
struct Call {
  int rank = 0, size = 1;
  int64_t n = 0;                     ///< floats
  float* data[kMaxRanks] = {};       ///< of each rank
  Words* inbox[kMaxRanks] = {};      ///< of each rank: [2][size][place_floats / 4], kNothing all over
  Signals* signals[kMaxRanks] = {};  ///< of each rank, zeros at first
  uint32_t* stop = nullptr;          ///< host memory of all ranks: not 0 once one has failed or waited in vain
};

template <class Here>
FIRSTLIGHT_HD inline int64_t first_vector(const Here& here) {
  return static_cast<int64_t>(here.block()) * here.n_threads() + here.thread();
}
template <class Here>
FIRSTLIGHT_HD inline int64_t vector_step(const Here& here) {
  return static_cast<int64_t>(here.n_blocks()) * here.n_threads();
}

FIRSTLIGHT_HD inline uint32_t word_of(float x) { return __builtin_bit_cast(uint32_t, x); }
FIRSTLIGHT_HD inline float float_of(uint32_t w) { return __builtin_bit_cast(float, w); }

/// 16 bytes at a multiple of 16, floats or words.
FIRSTLIGHT_HD inline void copy_words(const void* from, void* to) {
#if defined(__CUDA_ARCH__)
  *static_cast<Words*>(to) = *static_cast<const Words*>(from);  // one access; device code knows no other aliasing
#else
  __builtin_memcpy(to, from, sizeof(Words));
#endif
}

/// Vector i of n floats, zeros behind the last.
FIRSTLIGHT_HD inline Words vector_of(const float* data, int64_t i, int64_t n) {
  Words out{};
  if (4 * i + 4 <= n) {
    copy_words(data + 4 * i, &out);
    return out;
  }
  for (int k = 0; k < 4; ++k)
    if (4 * i + k < n) out.word[k] = word_of(data[4 * i + k]);
  return out;
}
FIRSTLIGHT_HD inline void set_vector(float* data, int64_t i, int64_t n, const Words& words) {
  if (4 * i + 4 <= n) {
    copy_words(&words, data + 4 * i);
  } else {
    for (int k = 0; k < 4; ++k)
      if (4 * i + k < n) data[4 * i + k] = float_of(words.word[k]);
  }
}

FIRSTLIGHT_HD inline void add_to(Words& sum, const Words& x) {
  for (int k = 0; k < 4; ++k) sum.word[k] = word_of(float_of(sum.word[k]) + float_of(x.word[k]));
}

/// Waits until another rank's vector is in the inbox, takes it, and leaves nothing there.
template <class Here>
FIRSTLIGHT_HD inline Words take(const Here& here, const Call& call, Words* from) {
  Words x = here.load(from);
  for (uint32_t polls = 1;
       x.word[0] == kNothing || x.word[1] == kNothing || x.word[2] == kNothing || x.word[3] == kNothing; ++polls) {
    if (here.given_up(call, polls)) break;
    x = here.load(from);
  }
  here.store(from, Words{{kNothing, kNothing, kNothing, kNothing}});
  return x;
}

template <class Here>
FIRSTLIGHT_HD inline bool wait_for(const Here& here, const Call& call, uint32_t* signal, uint32_t epoch) {
  for (uint32_t polls = 1; static_cast<int32_t>(here.signalled(signal) - epoch) < 0; ++polls) {
    if (here.given_up(call, polls)) return false;
  }
  return true;
}

/// The last block to be done counts the exchange.
template <class Here>
FIRSTLIGHT_HD inline void count(const Here& here, const Call& call, uint32_t epoch) {
  Signals& own = *call.signals[call.rank];
  here.sync();  // all threads have read the epoch
  if (here.thread() != 0 || here.arrive(&own.arrived) + 1 != static_cast<uint32_t>(here.n_blocks())) return;
  own.arrived = 0;
  own.epoch = epoch + 1;
}

/// For few floats (n ≤ place_floats(size)): everyone sends all to all. The words are their own signal, so a sum takes
/// one way over the link and no fence. The two halves of the inbox take turns. A half is free again: a rank sends
/// exchange e + 2 when it has seen what another sent in e + 1, which that one did after it had emptied its half of e.
template <class Here>
FIRSTLIGHT_HD inline void sum_by_inbox(const Here& here, const Call& call) {
  const uint32_t epoch = call.signals[call.rank]->epoch;
  const int64_t n_vectors = (call.n + 3) / 4, per_sender = place_floats(call.size) / 4;
  const int64_t half = (epoch & 1) * call.size * per_sender;
  float* const data = call.data[call.rank];
  for (int64_t i = first_vector(here); i < n_vectors; i += vector_step(here)) {
    Words own = vector_of(data, i, call.n);
    for (int k = 0; k < 4; ++k)
      if (own.word[k] == kNothing) own.word[k] = 0x7fffffffu;  // another NaN
    for (int d = 1; d < call.size; ++d) {
      const int p = (call.rank + d) % call.size;  // not all at once to the same one
      here.store(call.inbox[p] + half + call.rank * per_sender + i, own);
    }
  }
  for (int64_t i = first_vector(here); i < n_vectors; i += vector_step(here)) {
    const Words own = vector_of(data, i, call.n);
    Words sum{};
    for (int p = 0; p < call.size; ++p) {
      const Words x = p == call.rank ? own : take(here, call, call.inbox[call.rank] + half + p * per_sender + i);
      if (p == 0) {
        sum = x;
      } else {
        add_to(sum, x);
      }
    }
    set_vector(data, i, call.n, sum);
  }
  count(here, call, epoch);
}

/// Tells the others that this rank's data may be read and written, and waits until they have said so. False: given up,
/// and nobody's memory is touched.
template <class Here>
FIRSTLIGHT_HD inline bool open(const Here& here, const Call& call, uint32_t epoch) {
  const int first = here.thread();  // a thread for each other rank; a host's one thread for all
  for (int p = first; p < call.size; p += here.n_threads()) {
    if (p != call.rank && here.block() == 0) here.signal(&call.signals[p]->started[call.rank], epoch + 1);
  }
  bool there = true;
  for (int p = first; p < call.size; p += here.n_threads()) {
    if (p != call.rank) there = wait_for(here, call, &call.signals[call.rank]->started[p], epoch + 1) && there;
  }
  return here.all(there);
}

/// Tells the others that this block has done what it does in their memory; waits for the same block of each of them.
template <class Here>
FIRSTLIGHT_HD inline void close(const Here& here, const Call& call, uint32_t epoch) {
  here.sync();
  const int first = here.thread();
  for (int p = first; p < call.size; p += here.n_threads()) {
    if (p != call.rank) here.signal(&call.signals[p]->done[call.rank][here.block()], epoch + 1);
  }
  for (int p = first; p < call.size; p += here.n_threads()) {
    if (p != call.rank) wait_for(here, call, &call.signals[call.rank]->done[p][here.block()], epoch + 1);
  }
}

/// For many floats: rank r adds up the r-th part of all ranks' data and writes the sum into all of them. No byte is
/// staged, and a link carries each rank's part once in each direction.
/// `kMost`: ranks there may be; so many loads, of several vectors where ranks are few, are on their way at once.
template <int kMost, class Here>
FIRSTLIGHT_HD inline void sum_in_place(const Here& here, const Call& call) {
  constexpr int kVectors = kMaxRanks / kMost;
  const uint32_t epoch = call.signals[call.rank]->epoch;
  const int64_t n_vectors = (call.n + 3) / 4, part = (n_vectors + call.size - 1) / call.size;
  const int64_t begin = part * call.rank, end = begin + part < n_vectors ? begin + part : n_vectors;
  const int64_t step = vector_step(here);
  const bool is_open = open(here, call, epoch);
  for (int64_t first = is_open ? begin + first_vector(here) : end; first < end; first += kVectors * step) {
    Words x[kMost][kVectors];
    FIRSTLIGHT_UNROLL
    for (int p = 0; p < kMost; ++p) {
      FIRSTLIGHT_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const int64_t i = first + v * step;
        if (p < call.size && i < end) x[p][v] = here.read(call.data[p], i, call.n);
      }
    }
    FIRSTLIGHT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = first + v * step;
      if (i >= end) break;
      FIRSTLIGHT_UNROLL
      for (int p = 1; p < kMost; ++p)
        if (p < call.size) add_to(x[0][v], x[p][v]);
      for (int p = 0; p < call.size; ++p) here.write(call.data[p], i, call.n, x[0][v]);
    }
  }
  if (is_open) close(here, call, epoch);
  count(here, call, epoch);
}

}  // namespace firstlight::peer

#undef FIRSTLIGHT_UNROLL
