// CUDA kernels of the magnitude-preserving concatenation, with the mp_silu that follows it.
#pragma once
#include "cuda/primitives.cuh"
#include "mp_silu.h"

namespace agf::cuda {

template <class T>
AGF_DEVICE void MpCat::run() const {
  using A = Compute<T>;
  const int64_t length = length_a + length_b;
  T *out = static_cast<T*>(y), *silu_out = static_cast<T*>(silu);
  const bool vectors =
      length_a % kVector<T> == 0 && length_b % kVector<T> == 0 && aligned(a, b, y, silu);
  for_rows<kVector<T>>(outer, length, vectors, [&](auto width, int64_t row, int64_t c) {
    AGF_WIDTH(width);
    const bool from_b = c >= length_a;
    const T* in = from_b ? static_cast<const T*>(b) + row * length_b + c - length_a
                         : static_cast<const T*>(a) + row * length_a + c;
    const A w = A(from_b ? weight_b : weight_a);
    A p[N];
    load(in, p);
    for (int j = 0; j < N; ++j) p[j] *= w;
    store(p, out + row * length + c);
    if (silu) {
      for (int j = 0; j < N; ++j) p[j] = mp_silu(p[j]);
      store(p, silu_out + row * length + c);
    }
  });
}

template <class T>
AGF_DEVICE void MpCatBackward::run() const {
  using A = Compute<T>;
  const int64_t length = length_a + length_b;
  const T *y_in = static_cast<const T*>(grad_y), *silu_in = static_cast<const T*>(grad_silu);
  const bool vectors = length_a % kVector<T> == 0 && length_b % kVector<T> == 0 &&
                       aligned(grad_y, grad_silu, a, b) && aligned(grad_a, grad_b);
  for_rows<kVector<T>>(outer, length, vectors, [&](auto width, int64_t row, int64_t c) {
    AGF_WIDTH(width);
    const bool from_b = c >= length_a;
    const int64_t source = from_b ? row * length_b + c - length_a : row * length_a + c;
    const A w = A(from_b ? weight_b : weight_a);
    A g[N];
    load(y_in + row * length + c, g);
    if (silu_in) {
      A p[N], s[N];
      load(static_cast<const T*>(from_b ? b : a) + source, p);
      load(silu_in + row * length + c, s);
      for (int j = 0; j < N; ++j) g[j] += s[j] * mp_silu_slope(p[j] * w);
    }
    for (int j = 0; j < N; ++j) g[j] *= w;
    store(g, static_cast<T*>(from_b ? grad_b : grad_a) + source);
  });
}

}  // namespace agf::cuda
