// CUDA kernels of the magnitude-preserving sum with its clip: one pass for four of the textbook.
#pragma once
#include "cuda/primitives.cuh"
#include "mp_sum.h"

namespace agf::cuda {

template <class T>
AGF_DEVICE void MpSum::run() const {
  using A = Compute<T>;
  const T *a_in = static_cast<const T*>(a), *b_in = static_cast<const T*>(b);
  T* out = static_cast<T*>(y);
  const A wa = A(weight_a), wb = A(weight_b), l = A(limit);
  for_elements<kVector<T>>(count, aligned(a, b, y), [&](auto width, int64_t i) {
    AGF_WIDTH(width);
    A p[N], q[N];
    load(a_in + i, p);
    load(b_in + i, q);
    for (int j = 0; j < N; ++j) p[j] = clip(mp_sum(p[j], q[j], wa, wb), l);
    store(p, out + i);
  });
}

template <class T>
AGF_DEVICE void MpSumBackward::run() const {
  using A = Compute<T>;
  const T* grad_in = static_cast<const T*>(grad);
  const T *a_in = static_cast<const T*>(a), *b_in = static_cast<const T*>(b);
  T *a_out = static_cast<T*>(grad_a), *b_out = static_cast<T*>(grad_b);
  const A wa = A(weight_a), wb = A(weight_b), l = A(limit);
  const bool vectors = aligned(grad, a, b, grad_a, grad_b);
  for_elements<kVector<T>>(count, vectors, [&](auto width, int64_t i) {
    AGF_WIDTH(width);
    A g[N], p[N], q[N];
    load(grad_in + i, g);
    load(a_in + i, p);
    load(b_in + i, q);
    for (int j = 0; j < N; ++j) {
      const A t = g[j] * clip_slope(mp_sum(p[j], q[j], wa, wb), l);
      p[j] = t * wa;
      q[j] = t * wb;
    }
    store(p, a_out + i);
    store(q, b_out + i);
  });
}

}  // namespace agf::cuda
