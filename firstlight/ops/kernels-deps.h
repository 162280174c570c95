// SPDX-License-Identifier: Apache-2.0
// What kernels-inl.h needs, included before an instruction set is switched on: the standard library's inline functions
// must not be compiled for it (the linker keeps one copy of each for the whole program).
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "firstlight/base/half.h"
#include "firstlight/ops/kernels.h"
#include "firstlight/quant/turboquant_page.h"
