// SPDX-License-Identifier: Apache-2.0
// The codec for AVX-512; CMakeLists.txt gives this file its flags.
#if defined(__x86_64__)
#define FIRSTLIGHT_TQ_TABLE kCodecAvx512
#define FIRSTLIGHT_TQ_NAME "avx512"
#define FIRSTLIGHT_TQ_PLAIN 0
#include "firstlight/quant/turboquant_kernels.inc"
#endif
