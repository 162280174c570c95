// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/shard_schedule.h"

#include <algorithm>
#include <bit>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/ckpt/shard_read.h"

namespace firstlight {

namespace {

// 8 MiB a request keeps NVMe and network storage busy with two or three in flight; more only costs memory.
constexpr uint64_t kMostChunkBytes = 8u << 20;
constexpr uint64_t kMostBandBytes = 8u << 20;
constexpr uint64_t kMostStashBytes = 256u << 20;

/// Where a tensor stands in one tp.
struct Place {
  size_t part = 0;
  bool tail = false;
};

std::vector<std::vector<Place>> places_of(const std::vector<CutTp>& tps, size_t n_tensors) {
  std::vector<std::vector<Place>> places(tps.size(), std::vector<Place>(n_tensors));
  for (size_t t = 0; t < tps.size(); ++t) {
    const auto& parts = tps[t].layout.parts;
    for (size_t p = 0; p < parts.size(); ++p) {
      for (size_t i = 0; i < parts[p].placed.size(); ++i) {
        places[t][parts[p].placed[i].index] = {p, i >= parts[p].n_head};
      }
    }
  }
  return places;
}

class Scheduler {
 public:
  Scheduler(const std::vector<StoredTensor>& tensors, const std::vector<CutTp>& tps, const BufferPlan& buffers)
      : tensors_(tensors), tps_(tps), buffers_(buffers), places_(places_of(tps, tensors.size())) {
    uses_.resize(tensors.size());
  }

  std::vector<CutStep> run() {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      for (size_t t = 0; t < tps_.size(); ++t) {
        const size_t part = places_[t][i].part;
        const bool first = i == 0 || places_[t][i - 1].part != part;
        if (first && tps_[t].any_live(part)) add(CutStep::Kind::open, t, part);
      }
      read_once(i);
      for (size_t t = 0; t < tps_.size(); ++t) {
        const size_t part = places_[t][i].part;
        if (tps_[t].layout.parts[part].last_index == i && tps_[t].any_live(part)) finish_part(t, part);
      }
    }
    return std::move(steps_);
  }

 private:
  uint64_t bytes_of(size_t i) const { return tensors_[i].row_bytes() * static_cast<uint64_t>(tensors_[i].n_rows()); }

  void add(CutStep::Kind kind, size_t tp, size_t part, size_t tensor = 0, bool last_use = false) {
    CutStep step;
    step.kind = kind;
    step.tp = tp;
    step.part = part;
    step.tensor = tensor;
    step.last_use = last_use;
    steps_.push_back(step);
  }

  void add_bands(CutStep step, size_t i) {
    const int64_t n_rows = tensors_[i].n_rows();
    const auto rows = std::max<int64_t>(1, static_cast<int64_t>(buffers_.band_bytes / tensors_[i].row_bytes()));
    step.tensor = i;
    for (int64_t row = 0; row < n_rows; row += rows) {
      step.row_begin = row;
      step.row_end = std::min(n_rows, row + rows);
      steps_.push_back(step);
    }
  }

  void read_once(size_t i) {
    bool head = false;
    int tails = 0;
    for (size_t t = 0; t < tps_.size(); ++t) {
      if (!tps_[t].any_live(places_[t][i].part)) continue;
      (places_[t][i].tail ? tails += 1 : head = true);
    }
    CutStep step;
    step.stash = tails > 0 && stashed_ + bytes_of(i) <= buffers_.stash_bytes;
    if (step.stash) {
      uses_[i] = tails;
      stashed_ += bytes_of(i);
    }
    if (head || step.stash) add_bands(step, i);
  }

  void finish_part(size_t t, size_t p) {
    const PartLayout& part = tps_[t].layout.parts[p];
    for (size_t k = part.n_head; k < part.placed.size(); ++k) {
      const size_t i = part.placed[k].index;
      if (uses_[i] > 0) {
        const bool last_use = --uses_[i] == 0;
        add(CutStep::Kind::tail, t, p, i, last_use);
        if (last_use) stashed_ -= bytes_of(i);
      } else {
        CutStep step;
        step.kind = CutStep::Kind::tail_band;
        step.tp = t;
        step.part = p;
        add_bands(step, i);
      }
    }
    add(CutStep::Kind::close, t, p);
  }

  const std::vector<StoredTensor>& tensors_;
  const std::vector<CutTp>& tps_;
  const BufferPlan& buffers_;
  std::vector<std::vector<Place>> places_;  // [tp][tensor]
  std::vector<int> uses_;                   // `tail` steps still to come that read the stashed copy
  uint64_t stashed_ = 0;
  std::vector<CutStep> steps_;
};

}  // namespace

bool CutTp::any_live(size_t part) const {
  return std::any_of(live[part].begin(), live[part].end(), [](char x) { return x != 0; });
}

uint64_t BufferPlan::band_stride() const {
  return (band_bytes + kPageBytes - 1) / kPageBytes * kPageBytes + DirectReader::kSlackBytes;
}

BufferPlan plan_buffers(uint64_t memory_bytes, int n_threads, uint64_t n_open, uint64_t max_row_bytes) {
  const int cores = n_threads > 0 ? n_threads : usable_cores();
  BufferPlan plan;
  plan.n_readers = std::clamp(cores, 2, 16);
  plan.n_hashers = std::clamp(cores / 4, 1, 4);
  plan.n_writers = std::clamp(cores, 3, 16);
  // `share`: a quarter or an eighth of the memory for bands, half of that for the stash.
  const auto fits = [&](uint64_t share, uint64_t n_bands, uint64_t n_spare, uint64_t chunk_bytes) {
    plan.n_bands = n_bands;
    plan.band_bytes = std::max(max_row_bytes, std::min(kMostBandBytes, memory_bytes / share / n_bands));
    plan.stash_bytes = std::min(kMostStashBytes, memory_bytes / share / 2);
    plan.n_chunks = n_open + n_spare;
    plan.chunk_bytes = chunk_bytes;
    return plan.total() <= memory_bytes;
  };
  const uint64_t many_bands = static_cast<uint64_t>(plan.n_readers) * 2;
  const uint64_t many_spare = static_cast<uint64_t>(plan.n_writers) * 2;
  for (uint64_t chunk_bytes = kMostChunkBytes; chunk_bytes >= kLeafBytes; chunk_bytes /= 2) {
    if (fits(4, many_bands, many_spare, chunk_bytes)) return plan;
  }
  // Little memory: fewer buffers before an error. Two of each keep reading and writing beside each other.
  for (const uint64_t n : {uint64_t{4}, uint64_t{2}}) {
    if (fits(8, n, n, kLeafBytes)) return plan;
  }
  // Chunks and two rows, and the 3/16 that bands and stash take.
  const uint64_t least = ((n_open + 2) * kLeafBytes + 2 * (max_row_bytes + 3 * kPageBytes)) / 13 * 16 + kLeafBytes;
  throw Error(ErrorKind::bad_input, str("--memory ", memory_bytes, " is too little for ", n_open,
                                        " rank files at once: ", (least + (1u << 20) - 1) >> 20,
                                        "MiB is enough; fewer tps a call need less"));
}

std::vector<CutStep> schedule(const std::vector<StoredTensor>& tensors, const std::vector<CutTp>& tps,
                              const BufferPlan& buffers) {
  return Scheduler(tensors, tps, buffers).run();
}

}  // namespace firstlight
