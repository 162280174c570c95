// SPDX-License-Identifier: Apache-2.0
// The codec for any machine: the text that the GPU compiles, and the truth for the others.
#define FIRSTLIGHT_TQ_TABLE kCodecPlain
#define FIRSTLIGHT_TQ_NAME "plain"
#define FIRSTLIGHT_TQ_PLAIN 1
#include "firstlight/quant/turboquant_kernels.inc"
