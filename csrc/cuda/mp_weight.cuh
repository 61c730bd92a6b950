// CUDA kernels of the weight preparation. The textbook writes the normalised weight, reads it,
// normalises it again, and writes and reads it twice more for the gain and the cast; here a row is
// read once from memory, and then from the caches.
#pragma once
#include "cuda/primitives.cuh"
#include "normalize.h"

namespace agf::cuda {

AGF_DEVICE double value_of(DeviceScalar s) {
  if (!s.data) return 1.0;
  return s.is_double ? *static_cast<const double*>(s.data) : *static_cast<const float*>(s.data);
}

// A vector of the wider type fills 16 bytes, so one of the narrower type may be of 8 or 4.
template <class T, class U>
constexpr int kVectorOfBoth = kVector<T> < kVector<U> ? kVector<T> : kVector<U>;

template <class T, class U>
AGF_DEVICE void MpWeight::run() const {
  using A = Compute<T>;
  using B = Compute<U>;
  constexpr int V = kVectorOfBoth<T, U>;
  T* in = static_cast<T*>(w);
  U* out = static_cast<U*>(y);
  const A scale = A(value_of(gain) * fan_in_scale);
  const bool vectors = K % V == 0 && aligned(w, y);
  for_reduced_rows(rows, K, [&](auto group, int64_t row) {
    const auto factor_of_row = [&] {
      A squares = 0;
      for_row<V>(group, K, vectors, [&](auto width, int64_t i) {
        AGF_WIDTH(width);
        A a[N];
        load(in + row * K + i, a);
        for (int j = 0; j < N; ++j) squares += a[j] * a[j];
      });
      return normalize_factor(group.sum(squares), A(K), A(eps));
    };
    if (forced) {  // each thread reads again what it wrote itself
      const A factor = factor_of_row();
      for_row<V>(group, K, vectors, [&](auto width, int64_t i) {
        AGF_WIDTH(width);
        A a[N];
        load(in + row * K + i, a);
        for (int j = 0; j < N; ++j) a[j] *= factor;
        store(a, in + row * K + i);
      });
    }
    const A factor = factor_of_row() * scale;
    for_row<V>(group, K, vectors, [&](auto width, int64_t i) {
      AGF_WIDTH(width);
      A a[N];
      B o[N];
      load(in + row * K + i, a);
      for (int j = 0; j < N; ++j) o[j] = B(a[j] * factor);
      store(o, out + row * K + i);
    });
  });
}

template <class T, class U>
AGF_DEVICE void MpWeightBackward::run() const {
  using A = Compute<T>;
  constexpr int V = kVectorOfBoth<T, U>;
  const U* grad_in = static_cast<const U*>(grad);
  const T* in = static_cast<const T*>(w);
  T* out = static_cast<T*>(grad_w);
  const A scale = A(value_of(gain) * fan_in_scale);
  const bool vectors = K % V == 0 && aligned(grad, w, grad_w);
  for_reduced_rows(rows, K, [&](auto group, int64_t row) {
    A squares = 0, product = 0;
    for_row<V>(group, K, vectors, [&](auto width, int64_t i) {
      AGF_WIDTH(width);
      A a[N];
      Compute<U> g[N];
      load(in + row * K + i, a);
      load(grad_in + row * K + i, g);
      for (int j = 0; j < N; ++j) {
        squares += a[j] * a[j];
        product += a[j] * A(g[j]);
      }
    });
    squares = group.sum(squares);
    product = group.sum(product);
    const A factor = normalize_factor(squares, A(K), A(eps));
    if (group.rank() == 0) row_sums[row] = double(product) * factor * fan_in_scale;
    const A back = normalize_backward_factor(squares, product, A(K), factor) * scale;
    const A forth = factor * scale;
    for_row<V>(group, K, vectors, [&](auto width, int64_t i) {
      AGF_WIDTH(width);
      A a[N];
      Compute<U> g[N];
      load(in + row * K + i, a);
      load(grad_in + row * K + i, g);
      for (int j = 0; j < N; ++j) a[j] = A(g[j]) * forth - a[j] * back;
      store(a, out + row * K + i);
    });
  });
}

template <class T>
AGF_DEVICE void SumRows::run() const {
  double total = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) total += row_sums[row];
  total = Block::sum(total);
  if (threadIdx.x == 0) narrow(Compute<T>(total), static_cast<T*>(sum));
}

}  // namespace agf::cuda
