// CUDA kernels of pixel norm, fused with the resampling before it and the mp_silu after it.
// Unfused, the three read the image three times and write it three times; here the source is read
// once (again from L1) and the two results are written.
#pragma once
#include "cuda/primitives.cuh"
#include "cuda/resample.cuh"
#include "mp_silu.h"
#include "normalize.h"

namespace agf::cuda {

template <class T>
AGF_DEVICE void NormalizeRows::run() const {
  using A = Compute<T>;
  const PixelReader<T> reader(source);
  T *out = static_cast<T*>(y), *silu_out = static_cast<T*>(silu);
  const int64_t C = source.C;
  const bool vectors = C % kVector<T> == 0 && aligned(source.x, y, silu);
  for_reduced_rows(source.N * source.H.value * source.W.value, C, [&](auto group, int64_t pixel) {
    const T* row = reader.row(pixel);
    A squares = 0;
    for_row<kVector<T>>(group, C, vectors, [&](auto width, int64_t c) {
      AGF_WIDTH(width);
      A a[N];
      reader.load_row(row, c, a);
      for (int j = 0; j < N; ++j) squares += a[j] * a[j];
    });
    const A factor = normalize_factor(group.sum(squares), A(C), A(eps));
    for_row<kVector<T>>(group, C, vectors, [&](auto width, int64_t c) {
      AGF_WIDTH(width);
      A a[N];
      reader.load_row(row, c, a);
      for (int j = 0; j < N; ++j) a[j] *= factor;
      store(a, out + pixel * C + c);
      if (silu) {
        for (int j = 0; j < N; ++j) a[j] = mp_silu(a[j]);
        store(a, silu_out + pixel * C + c);
      }
    });
  });
}

template <class T>
AGF_DEVICE void NormalizePlanes::run() const {
  using A = Compute<T>;
  const PixelReader<T> reader(source);
  T *out = static_cast<T*>(y), *silu_out = static_cast<T*>(silu);
  const int64_t C = source.C, S = source.H.value * source.W.value;
  for_pixels(source.N, S, [&](int64_t image, int64_t s) {
    const int64_t first = s < S ? warp() : C;  // a lane beyond the last pixel has no channels
    const int64_t h = s / source.W, w = s % source.W;
    A squares = 0;
    for (int64_t c = first; c < C; c += kWarps) {
      const A a = reader.value(image * C + c, h, w);
      squares += a * a;
    }
    const A factor = normalize_factor(sum_over_warps(squares), A(C), A(eps));
    for (int64_t c = first; c < C; c += kWarps) {
      const int64_t i = (image * C + c) * S + s;
      const A a = reader.value(image * C + c, h, w) * factor;
      narrow(a, out + i);
      if (silu) narrow(mp_silu(a), silu_out + i);
    }
  });
}

// The gradient of y = x f: what came to y itself, and what came through silu = mp_silu(y).
template <class A>
AGF_DEVICE A gradient_of_y(A grad_y, A grad_silu, A x, A factor) {
  return grad_y + grad_silu * mp_silu_slope(x * factor);
}

template <class T>
AGF_DEVICE void NormalizeBackwardRows::run() const {
  using A = Compute<T>;
  const T *y_in = static_cast<const T*>(grad_y), *silu_in = static_cast<const T*>(grad_silu);
  const T* in = static_cast<const T*>(x);
  T* out = static_cast<T*>(grad_x);
  const bool vectors = C % kVector<T> == 0 && aligned(grad_y, grad_silu, x, grad_x);
  for_reduced_rows(rows, C, [&](auto group, int64_t row) {
    A squares = 0;
    for_row<kVector<T>>(group, C, vectors, [&](auto width, int64_t c) {
      AGF_WIDTH(width);
      A a[N];
      load(in + row * C + c, a);
      for (int j = 0; j < N; ++j) squares += a[j] * a[j];
    });
    squares = group.sum(squares);
    const A factor = normalize_factor(squares, A(C), A(eps));
    // Loaded and computed again at each use, which needs no registers between them: L1 has the
    // values.
    const auto load_gradient = [&](const auto& a, auto& g, int64_t i) {
      load(y_in + i, g);
      if (!silu_in) return;
      A s[sizeof(g) / sizeof(A)];
      load(silu_in + i, s);
      int j = 0;
      for (A& value : g) value = gradient_of_y(value, s[j], a[j], factor), ++j;
    };
    A product = 0;
    for_row<kVector<T>>(group, C, vectors, [&](auto width, int64_t c) {
      AGF_WIDTH(width);
      A a[N], g[N];
      load(in + row * C + c, a);
      load_gradient(a, g, row * C + c);
      for (int j = 0; j < N; ++j) product += a[j] * g[j];
    });
    const A back = normalize_backward_factor(squares, group.sum(product), A(C), factor);
    for_row<kVector<T>>(group, C, vectors, [&](auto width, int64_t c) {
      AGF_WIDTH(width);
      A a[N], g[N];
      load(in + row * C + c, a);
      load_gradient(a, g, row * C + c);
      for (int j = 0; j < N; ++j) g[j] = g[j] * factor - a[j] * back;
      store(g, out + row * C + c);
    });
  });
}

template <class T>
AGF_DEVICE void NormalizeBackwardPlanes::run() const {
  using A = Compute<T>;
  const T *y_in = static_cast<const T*>(grad_y), *silu_in = static_cast<const T*>(grad_silu);
  const T* in = static_cast<const T*>(x);
  T* out = static_cast<T*>(grad_x);
  for_pixels(N, S, [&](int64_t image, int64_t s) {
    const int64_t first = s < S ? warp() : C;  // a lane beyond the last pixel has no channels
    A squares = 0, product = 0;
    for (int64_t c = first; c < C; c += kWarps) {
      const A a = widen(in[(image * C + c) * S + s]);
      squares += a * a;
    }
    squares = sum_over_warps(squares);
    const A factor = normalize_factor(squares, A(C), A(eps));
    const auto gradient = [&](int64_t i, A a) {
      const A g = widen(y_in[i]);
      return silu_in ? gradient_of_y(g, widen(silu_in[i]), a, factor) : g;
    };
    for (int64_t c = first; c < C; c += kWarps) {
      const int64_t i = (image * C + c) * S + s;
      const A a = widen(in[i]);
      product += a * gradient(i, a);
    }
    const A back = normalize_backward_factor(squares, sum_over_warps(product), A(C), factor);
    for (int64_t c = first; c < C; c += kWarps) {
      const int64_t i = (image * C + c) * S + s;
      const A a = widen(in[i]);
      narrow(gradient(i, a) * factor - a * back, out + i);
    }
  });
}

}  // namespace agf::cuda
