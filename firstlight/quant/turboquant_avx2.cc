// SPDX-License-Identifier: Apache-2.0
// The codec for AVX2; CMakeLists.txt gives this file its flags.
#if defined(__x86_64__)
#define FIRSTLIGHT_TQ_TABLE kCodecAvx2
#define FIRSTLIGHT_TQ_NAME "avx2"
#define FIRSTLIGHT_TQ_PLAIN 0
#include "firstlight/quant/turboquant_kernels.inc"
#endif
