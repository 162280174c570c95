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
          properties.major * 10 + properties.minor};
  skinny_.emplace(gpu_);
  hopper_attention_.emplace(gpu_);
  gpu_name_ = properties.name;
  if (options.least_weight * 2 >= cuda::kSkinnyBytes && skinny_->why_not().empty()) resident_rows_ = 2;
  if (!options.graphs || !options.resident) why_not_resident_ = options.why_not_resident;
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
  name_ = str(to_string(device_), ": ", gpu_name_, ", own kernels to ", cuda::kMatvecRows, " rows",
              why_no_skinny.empty() ? str(", to ", cuda::kSkinnyRows, " with weights of 24 MiB and more",
                                          options_.resident ? ", norms in them" : "")
                                    : str(" (9 to 32: ", why_no_skinny, ")"),
              why_no_library_.empty() ? ", else cuBLASLt" : str(", and above, no cuBLASLt: ", why_no_library_));
  const std::string& why_by_warps = hopper_attention_->why_not();
  name_ += why_by_warps.empty() ? "; attention of prompts by warpgroups"
                                : str("; attention of prompts by warps (", why_by_warps, ")");
  if (!options_.graphs) return;
  name_ += why_not_resident_.empty()
               ? str("; recorded steps of up to ", resident_rows_, " rows: one resident kernel")
               : str("; recorded steps: a graph of kernels (resident kernel: ", why_not_resident_, ")");
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
  program_.reset();
  // By what the pass is of, not by whether it can be recorded yet: its bits must not depend on when weights land.
  const bool never_resident_pass = !options_.resident || (!rows.spans.empty() && rows.spans.front().exact != nullptr);
  least_skinny_rows_ = never_resident_pass && skinny_->why_not().empty() ? 1 : resident_rows_ + 1;
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
  if (rows.spans.front().exact != nullptr) never_resident("it reads no codes");
  begin_program();
  if (program_) state_ = State::direct;  // its first pass, too: so all passes of these rows give the same bits
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

void CudaOps::begin_program() {
  if (!why_not_resident_.empty() || shape_.n_rows > resident_rows_) return;
  if (!cuda::ResidentProgram::fits(gpu_)) {
    why_not_resident_ = "does not fit this GPU";
    compose_name();
    return;
  }
  counters_.reserve(cuda::ResidentProgram::n_counters * sizeof(unsigned), stream_);
  program_ = std::make_unique<cuda::ResidentProgram>(gpu_, stream_);
}

void CudaOps::never_resident(std::string_view why) {
  if (!why_not_resident_.empty()) return;
  why_not_resident_ = why.empty() ? cuda::ResidentProgram::why() : why;
  compose_name();
}

void CudaOps::close_program() {
  launch_waiting();
  cuda::ResidentProgram* const p = program();
  if (!p || p->launched()) return;
  if (!p->empty()) {
    if (state_ == State::direct) p->send(stream_);
    p->launch(counters_.as<unsigned>(), stream_);
  }
  if (p->open_norm()) launch_norm(*p->open_norm());
  p->forget_norm();
}

void CudaOps::end() {
  if (state_ == State::idle) return;
  close_program();
  store_owns();
  const State ended = state_;
  if (ended == State::recording) {
    state_ = State::plain;  // whatever fails now, the capture is over
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream_, &graph), "record a pass");
    if (program_ && program_->launched()) program_->send(stream_);
    recording_->program = std::move(program_);
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
  const cuda::ResidentProgram* ran = ended == State::recording ? recording_->program.get() : program_.get();
  if ((ended == State::recording || ended == State::direct) && ran && !ran->whole()) {
    never_resident();  // this pass was right, but the next ones have a quicker way
    forget_recordings();
  }
  program_.reset();
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
