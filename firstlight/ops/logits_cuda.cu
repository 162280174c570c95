// SPDX-License-Identifier: Apache-2.0
// Logits go to host memory: through pinned staging when they are few, straight to the caller's rows when they are many.
#include <algorithm>

#include "firstlight/ops/cuda_ops.cuh"

namespace firstlight {

void CudaOps::logits(Matrix<const float> x, const Weight& w, Matrix<float> out) {
  if (x.rows == 0 || w.rows == 0) return;
  store_owns();
  const int64_t rows_at_once = std::min(x.rows, cuda::kLogitRows), floats = rows_at_once * w.rows;
  reserve(logits_, floats * 4);
  const bool staged = x.rows <= cuda::kLogitRows;
  if (staged) {
    if (!deliveries_.empty() && state_ == State::plain) deliver();  // staging may be about to move
    if (staging_.reserve(static_cast<uint64_t>(staged_floats_ + floats) * 4, stream_)) forget_recordings();
  }
  for (int64_t row = 0; row < x.rows; row += cuda::kLogitRows) {
    const int64_t n = std::min(cuda::kLogitRows, x.rows - row);
    const Matrix<float> part{logits_.as<float>(), n, w.rows, w.rows};
    matmul({x.data + row * x.stride, n, x.cols, x.stride}, w, nullptr, part);
    launch_waiting();
    if (staged) {
      float* to = staging_.as<float>() + staged_floats_;
      cuda::check(cudaMemcpyAsync(to, part.data, static_cast<size_t>(n * w.rows) * 4, cudaMemcpyDeviceToHost, stream_),
                  "fetch logits");
      deliveries_.push_back({to, {out.data, n, w.rows, out.stride}});
      staged_floats_ += floats;
    } else {
      cuda::check(cudaMemcpy2DAsync(out.row(row), static_cast<size_t>(out.stride) * 4, part.data,
                                    static_cast<size_t>(w.rows) * 4, static_cast<size_t>(w.rows) * 4,
                                    static_cast<size_t>(n), cudaMemcpyDeviceToHost, stream_),
                  "fetch logits");
    }
  }
}

void CudaOps::deliver() {
  cuda::check(cudaStreamSynchronize(stream_), "wait for logits");
  for (const Delivery& delivery : deliveries_) {
    for (int64_t i = 0; i < delivery.to.rows; ++i) {
      std::copy_n(delivery.from + i * delivery.to.cols, delivery.to.cols, delivery.to.row(i));
    }
  }
  deliveries_.clear();
  staged_floats_ = 0;
}

}  // namespace firstlight
