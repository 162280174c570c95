// SPDX-License-Identifier: Apache-2.0
// Uses a header and a symbol of a low and of a high layer of the installed library.
#include <cstdio>

#include "firstlight/base/dtype.h"
#include "firstlight/engine/engine.h"

int main() {
  std::vector<float> logits{0.5f, 2.0f, 1.0f};
  const int token = firstlight::sample(logits, firstlight::SamplingOptions{}, {}, 0);
  std::printf("greedy token %d, bf16 has %zu bytes\n", token, firstlight::size_of(firstlight::DType::bf16));
  return token == 1 ? 0 : 1;
}
