// SPDX-License-Identifier: Apache-2.0
// XXH3 for AVX-512; CMakeLists.txt gives this file -mavx512f.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own _mm512_undefined_epi32, bug 105593
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#define FIRSTLIGHT_HASH_TABLE kHashAvx512
#define FIRSTLIGHT_HASH_NAME "avx512"
#define XXH_VECTOR 3  // XXH_AVX512
#include "firstlight/base/hash_kernels.inc"
#endif
