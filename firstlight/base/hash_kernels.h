// SPDX-License-Identifier: Apache-2.0
// XXH3 compiled for one instruction set: private to base/hash*.cc and their tests. No C++ headers here: an inline
// function of theirs, compiled for AVX-512 and picked by the linker, would fault on older cores.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace firstlight {

struct HashKernels {
  const char* name;  ///< "avx512", "avx2", "plain" (SSE2 on x86-64, NEON on Arm)
  uint64_t (*xxh3_64)(const void* data, size_t n);
  void (*xxh3_128)(const void* data, size_t n, unsigned char* digest);  ///< 16 bytes, most significant first
  void* (*make_state)();                                                ///< null if there is no memory
  void (*free_state)(void* state);
  void (*update)(void* state, const void* data, size_t n);
  void (*digest)(const void* state, unsigned char* digest);
};

extern const HashKernels kHashPlain;
#if defined(__x86_64__)
extern const HashKernels kHashAvx2;    // call only where the core has AVX2
extern const HashKernels kHashAvx512;  // call only where the core has AVX-512F
#endif

/// The fastest that this core runs.
const HashKernels& hash_kernels() noexcept;

}  // namespace firstlight
