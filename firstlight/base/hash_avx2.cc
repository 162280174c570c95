// SPDX-License-Identifier: Apache-2.0
// XXH3 for AVX2; CMakeLists.txt gives this file -mavx2.
#if defined(__x86_64__)
#define FIRSTLIGHT_HASH_TABLE kHashAvx2
#define FIRSTLIGHT_HASH_NAME "avx2"
#define XXH_VECTOR 2  // XXH_AVX2
#include "firstlight/base/hash_kernels.inc"
#endif
