// SPDX-License-Identifier: Apache-2.0
// Ops for tests, written from the definitions: plain loops, sums in double, one thread. An oracle, so it shares no code
// with the real ones.
#pragma once
#include <cmath>
#include <vector>

#include "firstlight/model/reference_attention.h"

namespace firstlight {

class ReferenceOps final : public Ops {
 public:
  std::string_view name() const override { return "reference"; }

  void embed(std::span<const int> ids, const Weight& table, int64_t first_row, Matrix<float> out) override {
    for (size_t i = 0; i < ids.size(); ++i) {
      const int64_t row = ids[i] - first_row;
      for (int64_t j = 0; j < out.cols; ++j) {
        out.row(static_cast<int64_t>(i))[j] = row < 0 || row >= table.rows ? 0.0f : at(table, row * table.cols + j);
      }
    }
  }

  void rms_norm(Matrix<const float> x, const Weight& weight, float eps, Matrix<float> out) override {
    for (int64_t i = 0; i < x.rows; ++i) {
      const std::vector<double> normed = rms_normed(x.row(i), x.cols, weight, eps);
      for (int64_t j = 0; j < x.cols; ++j) out.row(i)[j] = static_cast<float>(normed[static_cast<size_t>(j)]);
    }
  }

  void matmul(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) override {
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < w.rows; ++j) out.row(i)[j] = static_cast<float>(dot(x.row(i), w, bias, j));
    }
  }

  void matmul_add(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) override {
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < w.rows; ++j)
        out.row(i)[j] = static_cast<float>(out.row(i)[j] + dot(x.row(i), w, bias, j));
    }
  }

  void gate_up_silu(Matrix<const float> x, const Weight& gate_up, const Weight* bias, Matrix<float> out) override {
    const int64_t hidden = gate_up.rows / 2;
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < hidden; ++j) {
        const double gate = dot(x.row(i), gate_up, bias, j), up = dot(x.row(i), gate_up, bias, hidden + j);
        out.row(i)[j] = static_cast<float>(gate / (1 + std::exp(-gate)) * up);
      }
    }
  }

  void rope_and_store(Matrix<float> qkv, int n_heads, const Weight* q_norm, const Weight* k_norm, float eps,
                      std::span<const double> inverse_frequencies, std::span<const AttentionSpan> spans,
                      const KvLayer& kv) override {
    for (const AttentionSpan& span : spans) {
      for (int64_t i = 0; i < span.n_rows; ++i) {
        float* row = qkv.row(span.row_begin + i);
        const int64_t position = span.position + i;
        for (int h = 0; h < n_heads + kv.n_kv_heads; ++h) {
          float* head = row + static_cast<int64_t>(h) * kv.head_dim;
          rotate(head, kv.head_dim, h < n_heads ? q_norm : k_norm, eps, inverse_frequencies, position);
        }
        for (int h = 0; h < 2 * kv.n_kv_heads; ++h) {
          for (int d = 0; d < kv.head_dim; ++d) {
            reference::store(kv, span.pages, position, h, d, row[static_cast<int64_t>(n_heads + h) * kv.head_dim + d]);
          }
        }
      }
    }
  }

  void attend(Matrix<const float> q, int n_heads, std::span<const AttentionSpan> spans, const KvLayer& kv,
              Matrix<float> out) override {
    const int group = n_heads / kv.n_kv_heads;
    for (const AttentionSpan& span : spans) {
      for (int64_t i = 0; i < span.n_rows; ++i) {
        for (int h = 0; h < n_heads; ++h) {
          const int64_t at_head = static_cast<int64_t>(h) * kv.head_dim, row = span.row_begin + i;
          reference::attend_head(q.row(row) + at_head, span.position + i + 1, h / group, span.pages, kv,
                                 out.row(row) + at_head);
        }
      }
    }
  }

 private:
  static float at(const Weight& w, int64_t i) {
    if (w.dtype == DType::f32) return static_cast<const float*>(w.data)[i];
    return bf16_to_f32(static_cast<const uint16_t*>(w.data)[i]);
  }

  static double dot(const float* x, const Weight& w, const Weight* bias, int64_t row) {
    double sum = bias == nullptr ? 0 : at(*bias, row);
    for (int64_t k = 0; k < w.cols; ++k) sum += static_cast<double>(x[k]) * at(w, row * w.cols + k);
    return sum;
  }

  static std::vector<double> rms_normed(const float* x, int64_t n, const Weight& weight, float eps) {
    double squares = 0;
    for (int64_t j = 0; j < n; ++j) squares += static_cast<double>(x[j]) * x[j];
    std::vector<double> out(static_cast<size_t>(n));
    for (int64_t j = 0; j < n; ++j)
      out[static_cast<size_t>(j)] = x[j] / std::sqrt(squares / static_cast<double>(n) + eps) * at(weight, j);
    return out;
  }

  static void rotate(float* head, int head_dim, const Weight* norm, float eps,
                     std::span<const double> inverse_frequencies, int64_t position) {
    std::vector<double> x(head, head + head_dim);
    if (norm != nullptr) x = rms_normed(head, head_dim, *norm, eps);
    const int half = head_dim / 2;
    for (int d = 0; d < half; ++d) {
      const double angle = static_cast<double>(position) * inverse_frequencies[static_cast<size_t>(d)];
      const double a = x[static_cast<size_t>(d)], b = x[static_cast<size_t>(d + half)];
      head[d] = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
      head[d + half] = static_cast<float>(b * std::cos(angle) + a * std::sin(angle));
    }
  }
};

}  // namespace firstlight
