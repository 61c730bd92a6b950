// CUDA kernels of mp_silu and of the modulation before it: fused, the image is read once and
// written once, where the textbook makes five passes.
#pragma once
#include "cuda/primitives.cuh"
#include "mp_silu.h"

namespace agf::cuda {

template <class T>
AGF_DEVICE void MpSilu::run() const {
  const T* in = static_cast<const T*>(x);
  T* out = static_cast<T*>(y);
  for_elements<kVector<T>>(count, aligned(x, y), [&](auto width, int64_t i) {
    AGF_WIDTH(width);
    Compute<T> a[N];
    load(in + i, a);
    for (int j = 0; j < N; ++j) a[j] = mp_silu(a[j]);
    store(a, out + i);
  });
}

template <class T>
AGF_DEVICE void MpSiluBackward::run() const {
  const T *grad_in = static_cast<const T*>(grad), *in = static_cast<const T*>(x);
  T* out = static_cast<T*>(grad_x);
  for_elements<kVector<T>>(count, aligned(grad, x, grad_x), [&](auto width, int64_t i) {
    AGF_WIDTH(width);
    Compute<T> g[N], a[N];
    load(grad_in + i, g);
    load(in + i, a);
    for (int j = 0; j < N; ++j) g[j] *= mp_silu_slope(a[j]);
    store(g, out + i);
  });
}

template <class T>
AGF_DEVICE void ModulateMpSiluRows::run() const {
  const T *in = static_cast<const T*>(x), *factors = static_cast<const T*>(scale);
  T* out = static_cast<T*>(y);
  const bool vectors = C % kVector<T> == 0 && aligned(x, scale, y);
  for_rows<kVector<T>>(N * S.value, C, vectors, [&](auto width, int64_t pixel, int64_t c) {
    AGF_WIDTH(width);
    Compute<T> a[N], s[N];
    load(in + pixel * C + c, a);
    load(factors + pixel / S * C + c, s);
    for (int j = 0; j < N; ++j) a[j] = mp_silu(a[j] * s[j]);
    store(a, out + pixel * C + c);
  });
}

template <class T>
AGF_DEVICE void ModulateMpSiluPlanes::run() const {
  const T *in = static_cast<const T*>(x), *factors = static_cast<const T*>(scale);
  T* out = static_cast<T*>(y);
  const bool vectors = S % kVector<T> == 0 && aligned(x, y);
  for_rows<kVector<T>>(N * C, S, vectors, [&](auto width, int64_t plane, int64_t s) {
    AGF_WIDTH(width);
    Compute<T> a[N];
    load(in + plane * S + s, a);
    const Compute<T> factor = widen(factors[plane]);
    for (int j = 0; j < N; ++j) a[j] = mp_silu(a[j] * factor);
    store(a, out + plane * S + s);
  });
}

// A block has kChannelBlock channels of one image: its threads take different pixels, and their
// sums meet in shared memory.
template <class T, int N>
AGF_DEVICE void modulate_mp_silu_backward_rows(const ModulateMpSiluBackwardRows& k) {
  using A = Compute<T>;
  constexpr int kColumns = kChannelBlock / N, kRows = kThreads / kColumns;
  const T *grad_in = static_cast<const T*>(k.grad), *in = static_cast<const T*>(k.x);
  const T* factors = static_cast<const T*>(k.scale);
  T *out = static_cast<T*>(k.grad_x), *scale_out = static_cast<T*>(k.grad_scale);
  AGF_SHARED(A, sums, kRows * kChannelBlock);
  const int column = threadIdx.x % kColumns * N, row = threadIdx.x / kColumns;
  const int64_t groups = (k.C + kChannelBlock - 1) / kChannelBlock;
  for (int64_t n = blockIdx.y; n < k.N; n += gridDim.y) {
    for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
      const int64_t first = group * kChannelBlock, c = first + column;
      A sum[N] = {};
      if (c < k.C) {
        A s[N];
        load(factors + n * k.C + c, s);
        for (int64_t pixel = n * k.S + row; pixel < (n + 1) * k.S; pixel += kRows) {
          A g[N], a[N];
          load(grad_in + pixel * k.C + c, g);
          load(in + pixel * k.C + c, a);
          for (int j = 0; j < N; ++j) {
            const A t = g[j] * mp_silu_slope(a[j] * s[j]);
            g[j] = t * s[j];
            sum[j] += t * a[j];
          }
          store(g, out + pixel * k.C + c);
        }
      }
      for (int j = 0; j < N; ++j) sums[row * kChannelBlock + column + j] = sum[j];
      __syncthreads();
      if (threadIdx.x < kChannelBlock && first + threadIdx.x < k.C) {
        A total = 0;
        for (int r = 0; r < kRows; ++r) total += sums[r * kChannelBlock + threadIdx.x];
        narrow(total, scale_out + n * k.C + first + threadIdx.x);
      }
      __syncthreads();  // before the next sums are written there
    }
  }
}

template <class T>
AGF_DEVICE void ModulateMpSiluBackwardRows::run() const {
  if (C % kVector<T> == 0 && aligned(grad, x, scale, grad_x)) {
    modulate_mp_silu_backward_rows<T, kVector<T>>(*this);
  } else {
    modulate_mp_silu_backward_rows<T, 1>(*this);
  }
}

template <class T>
AGF_DEVICE void ModulateMpSiluBackwardPlanes::run() const {
  using A = Compute<T>;
  const T *grad_in = static_cast<const T*>(grad), *in = static_cast<const T*>(x);
  const T* factors = static_cast<const T*>(scale);
  T *out = static_cast<T*>(grad_x), *scale_out = static_cast<T*>(grad_scale);
  const bool vectors = S % kVector<T> == 0 && aligned(grad, x, grad_x);
  for_reduced_rows(N * C, S, [&](auto group, int64_t plane) {
    const A factor = widen(factors[plane]);
    A sum = 0;
    for_row<kVector<T>>(group, S, vectors, [&](auto width, int64_t s) {
      AGF_WIDTH(width);
      A g[N], a[N];
      load(grad_in + plane * S + s, g);
      load(in + plane * S + s, a);
      for (int j = 0; j < N; ++j) {
        const A t = g[j] * mp_silu_slope(a[j] * factor);
        g[j] = t * factor;
        sum += t * a[j];
      }
      store(g, out + plane * S + s);
    });
    sum = group.sum(sum);
    if (group.rank() == 0) narrow(sum, scale_out + plane);
  });
}

}  // namespace agf::cuda
