// SPDX-License-Identifier: Apache-2.0
// The traditional load, kept as the honest baseline and for sources that were never cut: every tensor through host
// memory, converted, sliced and copied, one rank after another, on one thread.
#include <algorithm>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/arena.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/load_lane.h"
#include "firstlight/ckpt/shard_layout.h"
#include "firstlight/device/copy.h"

namespace firstlight {

namespace {

constexpr uint64_t kStagingBytes = 32u << 20;

class TraditionalLoad final : public Load {
 public:
  TraditionalLoad(const Source& source, const LoadOptions& options);
  const ModelConfig& config() const override { return config_; }
  std::vector<RankWeights>& weights() override { return weights_; }
  LoadReport wait() override { return report_; }
  std::vector<ReadLane*> lanes() override { return {}; }
  void rethrow_failure() override {}

 private:
  void fill(const Source& source, const LoadOptions& options, RankWeights& weights);
  void fill(const Source& source, const LoadOptions& options, const StoredTensor& tensor, const Slice& slice,
            const Tensor& place, Device device);
  void check_time(const LoadOptions& options, const std::string& tensor) const;

  ModelConfig config_;
  std::vector<StoredTensor> tensors_;
  std::vector<RankWeights> weights_;
  std::vector<std::byte> staging_;
  LoadReport report_;
  uint64_t total_bytes_ = 0, done_bytes_ = 0;  // of the arenas, for progress
  double begin_s_ = seconds_since_exec();
};

DTypeChoice choice_of(const Source& source, const LoadOptions& options) {
  if (!options.dtype) return default_dtype(source);
  if (*options.dtype == DType::bf16) return DTypeChoice::bf16;
  if (*options.dtype == DType::f32) return DTypeChoice::f32;
  throw Error(ErrorKind::bad_input, str("weights as ", to_string(*options.dtype), ": expected bf16 or f32"));
}

/// Each device must take the arenas of its ranks, and their share of what is reserved.
void require_fits_everywhere(std::span<const ArenaLayout> layouts, const LoadOptions& options) {
  for (size_t first = 0; first < layouts.size(); ++first) {
    const Device device = device_of(options, first);
    uint64_t needed = 0, n = 0;
    bool counted = false;  // with a rank before
    for (size_t rank = 0; rank < layouts.size(); ++rank) {
      if (device_of(options, rank) != device) continue;
      counted = counted || rank < first;
      needed += layouts[rank].bytes, ++n;
    }
    if (!counted) require_fits(needed, options.reserve_bytes / layouts.size() * n, free_memory(device), device);
  }
}

TraditionalLoad::TraditionalLoad(const Source& source, const LoadOptions& options) : config_(source.config()) {
  require_tp(config_, options.tp);
  if (options.rank) throw Error(ErrorKind::unsupported, "the traditional path loads all ranks in one process");
  tensors_ = stored_tensors(source, choice_of(source, options));
  std::vector<DType> dtypes;
  for (const StoredTensor& tensor : tensors_) dtypes.push_back(tensor.dtype);
  std::vector<ArenaLayout> layouts;
  for (int rank = 0; rank < options.tp; ++rank) {
    layouts.push_back(lay_out_arena(config_, dtypes, options.tp, rank));
    total_bytes_ += layouts.back().bytes;
  }
  {
    const Timeline::Scope phase(options.timeline, "arena");
    require_fits_everywhere(layouts, options);
    for (size_t rank = 0; rank < layouts.size(); ++rank) {
      weights_.push_back(make_rank_weights(config_, layouts[rank],
                                           Buffer(device_of(options, rank), layouts[rank].bytes), options.tp,
                                           static_cast<int>(rank)));
    }
  }
  for (RankWeights& weights : weights_) fill(source, options, weights);
  staging_ = {};
  for (RankWeights& weights : weights_) {
    for (int gate = 0; gate < weights.ready->size(); ++gate) weights.ready->open(gate);
  }
  report_.begin_s = begin_s_;
  report_.seconds = seconds_since_exec() - begin_s_;
  report_.reader = "traditional";
  report_.why = str("a ", source.kind(), " source, read through host memory, one rank after another");
  report_.verify =
      options.checked_before.empty() ? "none: the traditional path checks no hashes" : options.checked_before;
}

void TraditionalLoad::fill(const Source& source, const LoadOptions& options, RankWeights& weights) {
  const Timeline::Scope phase(options.timeline, str("read+convert rank ", weights.rank));
  const double begin_s = seconds_since_exec();
  const uint64_t bytes_before = report_.bytes;
  for (const StoredTensor& tensor : tensors_) {
    const Tensor& into = weights.tensors.find(tensor.model.name)->second;
    fill(source, options, tensor, slice_of(config_, tensor.model, options.tp, weights.rank), into,
         weights.arena.device());
    done_bytes_ += into.size_bytes;
    if (options.progress) options.progress(done_bytes_, total_bytes_);
  }
  report_.ranks.push_back(
      {weights.rank, weights.arena.device(), report_.bytes - bytes_before, seconds_since_exec() - begin_s, 0});
}

/// Whole rows into the staging buffer, the slice's columns from there to their place. Rows past the tensor's end are
/// padding: zero.
void TraditionalLoad::fill(const Source& source, const LoadOptions& options, const StoredTensor& tensor,
                           const Slice& slice, const Tensor& place, Device device) {
  std::byte* into = place.data;
  const size_t element = size_of(tensor.dtype);
  const uint64_t row_bytes = tensor.row_bytes();
  const int64_t n_rows = tensor.n_rows();
  // A 1-D tensor is one row of the source, and its elements are rows of the slice.
  const bool flat = slice.n_dims == 1;
  const int64_t row_begin = flat ? 0 : slice.row_begin;
  const int64_t row_end = flat ? 1 : std::min(slice.row_end, n_rows);
  const uint64_t skip = element * static_cast<uint64_t>(flat ? slice.row_begin : slice.col_begin);
  const uint64_t kept =
      element * static_cast<uint64_t>(flat ? slice.row_end - slice.row_begin : slice.col_end - slice.col_begin);
  const auto step = static_cast<int64_t>(std::max<uint64_t>(1, kStagingBytes / row_bytes));
  for (int64_t row = row_begin; row < row_end; row += step) {
    check_time(options, tensor.model.name);
    const int64_t end = std::min(row + step, row_end);
    const uint64_t size = row_bytes * static_cast<uint64_t>(end - row);
    if (staging_.size() < size) staging_.resize(size);
    source.read_rows(*tensor.source, row, end, tensor.dtype, {staging_.data(), size});
    report_.bytes += tensor.source->stored_bytes / static_cast<uint64_t>(n_rows) * static_cast<uint64_t>(end - row);
    uint64_t n = size;
    if (kept != row_bytes) {  // the slice's columns, moved together
      n = 0;
      for (uint64_t at = skip; at < size; at += row_bytes, n += kept) {
        std::memmove(staging_.data() + n, staging_.data() + at, kept);
      }
    }
    copy(into, device, staging_.data(), {}, n);
    into += n;
  }
  if (device.kind != Device::Kind::cpu) {  // host memory comes zeroed
    clear(into, device, place.size_bytes - static_cast<uint64_t>(into - place.data));
  }
}

void TraditionalLoad::check_time(const LoadOptions& options, const std::string& tensor) const {
  if (options.stop.stop_requested()) throw Interrupted();
  if (options.deadline_s > 0 && seconds_since_exec() - begin_s_ > options.deadline_s) {
    throw Error(ErrorKind::io,
                str("tensor '", tensor, "': not there within the deadline of ", human_seconds(options.deadline_s)));
  }
}

}  // namespace

std::unique_ptr<Load> load_traditionally(const Source& source, const LoadOptions& options) {
  return std::make_unique<TraditionalLoad>(source, options);
}

}  // namespace firstlight
