// SPDX-License-Identifier: Apache-2.0
// A pass from begin to end: plain, recorded or replayed.
#include <algorithm>
#include <bit>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/device/cuda.h"
#include "firstlight/ops/cuda_ops.cuh"

namespace firstlight {

using cuda::check;

CudaOps::CudaOps(Device device, const CudaOpsOptions& options)
    : device_(device),
      options_(options),
      own_stream_(options.stream ? Stream() : Stream(device)),
      stream_(static_cast<cudaStream_t>((options.stream ? options.stream : &own_stream_)->handle())),
      cublaslt_(device.index) {
  cuda::use(device);
  if (options.load_cublaslt) cublaslt_.start_loading();
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device.index), str("properties of ", to_string(device)));
  gpu_ = {properties.multiProcessorCount, static_cast<int>(properties.sharedMemPerBlockOptin),
          properties.major * 10 + properties.minor, options.any_gpu};
  skinny_.emplace(gpu_);
  hopper_attention_.emplace(gpu_);
  gpu_name_ = properties.name;
  compose_name();
}

CudaOps::~CudaOps() {
  cudaSetDevice(device_.index);
  try {
    abandon();
    forget_recordings();
  } catch (...) {  // a driver that fails here has failed before
  }
}

void CudaOps::compose_name() {
  const std::string& why_no_skinny = skinny_->why_not();
  const std::string& why_products_by_warps = skinny_->why_by_warps();
  const std::string own =
      str("own kernels to ", cuda::kSkinnyRows, " rows", options_.fold_norms ? ", norms in them" : "",
          why_products_by_warps.empty() ? "" : str(", by warps (", why_products_by_warps, ")"));
  const std::string_view no_own = why_no_library_.empty() ? "cuBLASLt, else plain kernels" : "plain kernels";
  name_ = str(to_string(device_), ": ", gpu_name_, ", ",
              why_no_skinny.empty() ? own : str(no_own, " (own kernels: ", why_no_skinny, ")"));
  if (!why_no_library_.empty()) {
    name_ += str("; no cuBLASLt: ", why_no_library_);
  } else if (why_no_skinny.empty()) {
    name_ += ", else cuBLASLt";
  }
  const std::string& why_by_warps = hopper_attention_->why_not();
  name_ += why_by_warps.empty() ? "; attention of prompts by warpgroups"
                                : str("; attention of prompts by warps (", why_by_warps, ")");
  if (options_.graphs) name_ += "; steps are recorded";
}

void CudaOps::abandon() {
  if (state_ == State::recording) {
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream_, &graph);  // fails if an op did: there may be nothing to destroy
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
  }
  state_ = State::idle;
  check(cudaStreamSynchronize(stream_), "wait for an abandoned pass");
  codes_.forget_fault(stream_);
}

void CudaOps::forget_recordings() {
  for (auto& [shape, recording] : recordings_) {
    if (recording.graph) check(cudaGraphExecDestroy(recording.graph), "destroy a recording");
    recording = Recording{};
  }
}

void CudaOps::reserve(cuda::DeviceScratch& scratch, int64_t bytes) {
  if (queue_.waiting && !scratch.holds(static_cast<uint64_t>(bytes))) {
    queue_.retired.push_back(std::move(scratch));  // a product that waits may have addresses in it
  }
  if (scratch.reserve(static_cast<uint64_t>(bytes), stream_)) forget_recordings();
}

bool CudaOps::begin(const PassRows& rows, bool weights_ready) {
  cuda::use(device_);
  if (state_ != State::idle) abandon();
  if (pass_.send(rows, stream_)) forget_recordings();
  if (draw_tables_.send(rows.draws, stream_)) forget_recordings();
  codes_.plan = {};
  codes_.forget_owns();
  rope_.clear();
  twin_ = {};
  planned_ = {};
  queue_.clear();
  twin_at_ = 0;  // so that a recorded pass finds its memory where the plain one before it did
  deliveries_.clear();
  staged_floats_ = 0;
  pass_logits_ = rows.logits;
  pass_likeliest_ = rows.likeliest;
  pass_drawn_ = rows.drawn;
  picked_ = {};
  drawn_ = {};
  recording_ = nullptr;
  state_ = State::plain;
  const cuda::RowSet& all = pass_.all();
  using Result = PassShape::Result;
  const Result result = !rows.drawn.empty()       ? Result::drawn
                        : !rows.likeliest.empty() ? Result::likeliest
                        : rows.logits.data        ? Result::logits
                                                  : Result::none;
  const bool alike = options_.graphs && weights_ready && result != Result::none && all.n_rows > 0 &&
                     all.n_single == all.n_rows && all.alone && all.in_place && pass_.wants_all();
  if (!alike) {
    agree(rows, 0);
    return false;
  }
  shape_ = {all.n_rows, result, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(all.n_pages_single)))};
  recording_ = &recordings_[shape_];
  const int agreed = agree(rows, recording_->graph ? 2 : recording_->seen ? 1 : 0);
  if (agreed == 2) {
    state_ = State::replaying;
    check(cudaGraphLaunch(recording_->graph, stream_), "replay a pass");
    return true;
  }
  if (agreed == 1) {
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "begin to record a pass");
    state_ = State::recording;
  }
  return false;
}

int CudaOps::agree(const PassRows& rows, int mine) {
  least_of_ranks_ = rows.least_of_ranks;
  return least_of_ranks_ ? least_of_ranks_(mine) : mine;
}

void CudaOps::end() {
  if (state_ == State::idle) return;
  launch_waiting();
  store_owns();
  const State ended = state_;
  if (ended == State::recording) {
    state_ = State::plain;  // whatever fails now, the capture is over
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream_, &graph), "record a pass");
    if (recording_->graph) check(cudaGraphExecDestroy(recording_->graph), "destroy a recording");  // another had none
    const cudaError_t code = cudaGraphInstantiate(&recording_->graph, graph, 0);
    cudaGraphDestroy(graph);
    if (code != cudaSuccess) recording_->graph = nullptr;
    check(code, "prepare a recorded pass");
    recording_->deliveries = deliveries_;
    recording_->offsets.clear();
    for (Delivery& delivery : recording_->deliveries) {
      recording_->offsets.push_back(delivery.to.data - pass_logits_.data);
      delivery.to.data = nullptr;
    }
    recording_->n_picked = picked_.size();
    recording_->n_drawn = drawn_.size();
    if (least_of_ranks_) {  // all have theirs ready on the device: from here on GPUs may wait for each other
      check(cudaGraphUpload(recording_->graph, stream_), "send a recorded pass");
      least_of_ranks_(0);
    }
    check(cudaGraphLaunch(recording_->graph, stream_), "run a recorded pass");
  } else if (ended == State::replaying) {
    deliveries_ = recording_->deliveries;
    picked_ = pass_likeliest_.first(recording_->n_picked);
    drawn_ = pass_drawn_.first(recording_->n_drawn);
    for (size_t i = 0; i < deliveries_.size(); ++i) {
      deliveries_[i].to.data = pass_logits_.data + recording_->offsets[i];
      deliveries_[i].to.stride = pass_logits_.stride;
    }
  }
  state_ = State::idle;
  check(cudaStreamSynchronize(stream_), "run a pass");
  codes_.require_finite(stream_);
  if (ended != State::recording && recording_) recording_->seen = true;
  queue_.retired.clear();
  deliver();
  std::copy_n(pick_staging_.as<Likeliest>(), picked_.size(), picked_.begin());
  std::copy_n(pick_staging_.as<int>(), drawn_.size(), drawn_.begin());
}

// The pages that kernels of this pass provide for: a bound that a recorded pass keeps.
int64_t CudaOps::pages_bound(const cuda::RowSet& set) const {
  return recording_ ? shape_.page_bucket : set.n_pages_single;
}

std::unique_ptr<Ops> make_cuda_ops(Device device, const CudaOpsOptions& options) {
  return std::make_unique<CudaOps>(device, options);
}

}  // namespace firstlight
