// SPDX-License-Identifier: Apache-2.0
// XXH3 for the baseline of the build.
#define FIRSTLIGHT_HASH_TABLE kHashPlain
#define FIRSTLIGHT_HASH_NAME "plain"
#include "firstlight/base/hash_kernels.inc"
