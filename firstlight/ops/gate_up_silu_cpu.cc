// SPDX-License-Identifier: Apache-2.0
// silu(x gateᵀ) * (x upᵀ): one product whose last step joins the two halves, so that they never reach memory.
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cpu_ops.h"

namespace firstlight {

void CpuOps::gate_up_silu(Matrix<const float> x, const Weight& gate_up, const Weight* bias, Matrix<float> out) {
  if (gate_up.rows % 2 != 0) {
    throw Error(ErrorKind::bug, str("gate and up stacked must have an even number of rows, found ", gate_up.rows));
  }
  multiply(x, gate_up, bias, out, Epilogue::silu);
}

}  // namespace firstlight
