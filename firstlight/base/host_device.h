// SPDX-License-Identifier: Apache-2.0
// One text for the CPU and the GPU: a function with this mark is compiled for both by nvcc, for the CPU by anyone else.
#pragma once

#if defined(__CUDACC__)
#define FIRSTLIGHT_HD __host__ __device__
#else
#define FIRSTLIGHT_HD
#endif
