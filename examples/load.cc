// SPDX-License-Identifier: Apache-2.0
// The library's loader by itself: all ranks of a rank checkpoint in parallel, layer by layer as they become ready.
//   load OUT TP
#include "firstlight/ckpt/load.h"

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "firstlight/base/error.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s OUT TP\n", argv[0]);
    return 2;
  }
  try {
    firstlight::LoadOptions options;
    options.tp = std::atoi(argv[2]);
    const auto load = firstlight::load_rank_checkpoint(argv[1], options);  // returns while bytes arrive

    // Weights may be used as soon as their gate is open; every byte behind it has been checked.
    for (firstlight::RankWeights& rank : load->weights()) {
      rank.ready->wait(0);
      const firstlight::Tensor& embedding = rank.tensors.at("model.embed_tokens.weight");
      std::printf("rank %d of %d: %zu tensors, embedding has %lld rows here\n", rank.rank, rank.tp, rank.tensors.size(),
                  static_cast<long long>(embedding.shape[0]));
    }

    const firstlight::LoadReport report = load->wait();  // all of it; throws what went wrong first
    std::printf("%llu bytes in %.3f s by %s, verification: %s\n", static_cast<unsigned long long>(report.bytes),
                report.seconds, report.reader.c_str(), report.verify.c_str());
    return 0;
  } catch (const firstlight::Error& error) {
    std::fprintf(stderr, "load: %s\n", error.what());
    return firstlight::exit_code(error.kind());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "load: %s\n", error.what());
    return 70;
  }
}
