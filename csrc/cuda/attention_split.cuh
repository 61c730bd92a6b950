// CUDA kernels of attention's normalise-and-split: from the interleaved output of one 1x1
// convolution to normalised queries, keys and values, each contiguous per head, in one pass.
#pragma once
#include "cuda/primitives.cuh"
#include "normalize.h"

namespace agf::cuda {

// Where one head of one pixel begins in x and in q, k and v.
struct HeadOffsets {
  int64_t x, part;
  AGF_DEVICE HeadOffsets(const Qkv& s, int64_t item) {
    const int64_t head = item % s.heads, pixel = item / s.heads;
    const int64_t n = pixel / s.S, position = pixel % s.S;
    x = n * s.x_n + position * s.x_s + head * s.ch * 3 * s.x_c;
    part = ((n * s.heads.value + head) * s.S.value + position) * s.ch;
  }
};

// body(item, rank) for each head of each pixel, shared by `lanes` lanes, of which this is `rank`.
// An item beyond the last is run too, because all lanes of a warp must join in its sums; it
// equals the last and writes what that writes.
template <class Body>
AGF_DEVICE void for_heads(const Qkv& s, int lanes, const Body& body) {
  const int64_t items = s.N * s.heads.value * s.S.value;
  const int64_t each = kWarp / lanes;  // items of a warp
  for (int64_t first = (blockIdx.x * int64_t{kWarps} + warp()) * each; first < items;
       first += gridDim.x * kWarps * each) {
    const int64_t item = first + lane() / lanes;
    body(item < items ? item : items - 1, lane() % lanes);
  }
}

// The three parts of N neighbouring channels: 3 N contiguous values, or at a stride.
template <int N, class T>
AGF_DEVICE void load_parts(const T* x, int64_t stride, Compute<T> (&parts)[3][N]) {
  if constexpr (N == 1) {
    for (int part = 0; part < 3; ++part) parts[part][0] = widen(x[part * stride]);
  } else {
    Compute<T> a[3][N];
    for (int k = 0; k < 3; ++k) load(x + k * N, a[k]);
#pragma unroll
    for (int i = 0; i < 3 * N; ++i) parts[i % 3][i / 3] = a[i / N][i % N];
  }
}
template <int N, class T>
AGF_DEVICE void store_parts(const Compute<T> (&parts)[3][N], T* x, int64_t stride) {
  if constexpr (N == 1) {
    for (int part = 0; part < 3; ++part) narrow(parts[part][0], x + part * stride);
  } else {
    Compute<T> a[3][N];
#pragma unroll
    for (int i = 0; i < 3 * N; ++i) a[i / N][i % N] = parts[i % 3][i / 3];
    for (int k = 0; k < 3; ++k) store(a[k], x + k * N);
  }
}

template <class T, int N>
AGF_DEVICE void attention_split(const AttentionSplit& k) {
  using A = Compute<T>;
  const Qkv& s = k.shape;
  T* out[3] = {static_cast<T*>(k.q), static_cast<T*>(k.k), static_cast<T*>(k.v)};
  for_heads(s, k.lanes, [&](int64_t item, int rank) {
    const HeadOffsets at(s, item);
    const T* in = static_cast<const T*>(k.x) + at.x;
    A factor[3] = {};
    for (int64_t c = rank * N; c < s.ch; c += k.lanes * N) {
      A a[3][N];
      load_parts(in + c * 3 * s.x_c, s.x_c, a);
      for (int part = 0; part < 3; ++part) {
        for (int j = 0; j < N; ++j) factor[part] += a[part][j] * a[part][j];
      }
    }
    for (int part = 0; part < 3; ++part) {
      factor[part] = normalize_factor(lane_sum(factor[part], k.lanes), A(s.ch), A(k.eps));
    }
    for (int64_t c = rank * N; c < s.ch; c += k.lanes * N) {
      A a[3][N];
      load_parts(in + c * 3 * s.x_c, s.x_c, a);
      for (int part = 0; part < 3; ++part) {
        for (int j = 0; j < N; ++j) a[part][j] *= factor[part];
        store(a[part], out[part] + at.part + c);
      }
    }
  });
}

template <class T, int N>
AGF_DEVICE void attention_split_backward(const AttentionSplitBackward& k) {
  using A = Compute<T>;
  const Qkv& s = k.shape;
  const T* grads[3] = {static_cast<const T*>(k.grad_q), static_cast<const T*>(k.grad_k),
                       static_cast<const T*>(k.grad_v)};
  for_heads(s, k.lanes, [&](int64_t item, int rank) {
    const HeadOffsets at(s, item);
    const T* in = static_cast<const T*>(k.x) + at.x;
    T* out = static_cast<T*>(k.grad_x) + at.x;
    A squares[3] = {}, product[3] = {}, factor[3], back[3];
    for (int64_t c = rank * N; c < s.ch; c += k.lanes * N) {
      A a[3][N];
      load_parts(in + c * 3 * s.x_c, s.x_c, a);
      for (int part = 0; part < 3; ++part) {
        A g[N];
        load(grads[part] + at.part + c, g);
        for (int j = 0; j < N; ++j) {
          squares[part] += a[part][j] * a[part][j];
          product[part] += a[part][j] * g[j];
        }
      }
    }
    for (int part = 0; part < 3; ++part) {
      squares[part] = lane_sum(squares[part], k.lanes);
      product[part] = lane_sum(product[part], k.lanes);
      factor[part] = normalize_factor(squares[part], A(s.ch), A(k.eps));
      back[part] = normalize_backward_factor(squares[part], product[part], A(s.ch), factor[part]);
    }
    for (int64_t c = rank * N; c < s.ch; c += k.lanes * N) {
      A a[3][N];
      load_parts(in + c * 3 * s.x_c, s.x_c, a);
      for (int part = 0; part < 3; ++part) {
        A g[N];
        load(grads[part] + at.part + c, g);
        for (int j = 0; j < N; ++j) a[part][j] = g[j] * factor[part] - a[part][j] * back[part];
      }
      store_parts(a, out + c * 3 * s.x_c, s.x_c);
    }
  });
}

template <class T>
AGF_DEVICE void AttentionSplit::run() const {
  if (shape.x_c == 1 && shape.ch % kVector<T> == 0 && aligned(x, q, k, v)) {
    attention_split<T, kVector<T>>(*this);
  } else {
    attention_split<T, 1>(*this);
  }
}

template <class T>
AGF_DEVICE void AttentionSplitBackward::run() const {
  const bool rows = shape.x_c == 1 && shape.ch % kVector<T> == 0;
  if (rows && aligned(grad_q, grad_k, grad_v, x, grad_x)) {
    attention_split_backward<T, kVector<T>>(*this);
  } else {
    attention_split_backward<T, 1>(*this);
  }
}

}  // namespace agf::cuda
