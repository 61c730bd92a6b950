// CUDA kernels of linear combinations and inner products of images: one pass over the terms, with
// coefficients read from the device, so that a captured graph serves any.
#pragma once
#include "cuda/primitives.cuh"

namespace agf::cuda {

template <class T>
AGF_DEVICE void Combine::run() const {
  using A = Compute<T>;
  for (int64_t n = blockIdx.y; n < images; n += gridDim.y) {
    A factors[kMostTerms];
    for (int m = 0; m < count; ++m) factors[m] = A(coefficients[n * stride + m]);
    T* out = static_cast<T*>(y) + n * image;
    bool vectors = aligned(out);
    for (int m = 0; m < count; ++m) {
      vectors = vectors && aligned(static_cast<const T*>(terms[m]) + n * image);
    }
    for_elements<kVector<T>>(image, vectors, [&](auto width, int64_t i) {
      AGF_WIDTH(width);
      A sum[N] = {};
      for (int m = 0; m < count; ++m) {
        A x[N];
        load(static_cast<const T*>(terms[m]) + n * image + i, x);
        for (int j = 0; j < N; ++j) sum[j] += factors[m] * x[j];
      }
      store(sum, out + i);
    });
  }
}

// A block for each image and each entry on and above the diagonal, in double as on the CPU.
template <class T>
AGF_DEVICE void InnerProducts::run() const {
  const int side = count + 1;
  for (int64_t entry = blockIdx.x; entry < images * side * side; entry += gridDim.x) {
    const int64_t n = entry / (side * side);
    const int a = static_cast<int>(entry % (side * side)) / side;
    const int b = static_cast<int>(entry % (side * side)) % side;
    if (a > b) continue;  // the whole block
    double sum = 0;
    if (a == count) {
      sum = static_cast<double>(image);
    } else {
      const T* p = static_cast<const T*>(terms[a]) + n * image;
      const T* q = b == count ? nullptr : static_cast<const T*>(terms[b]) + n * image;
      for (int64_t i = threadIdx.x; i < image; i += kThreads) {
        const double x = widen(p[i]);
        sum += q ? x * widen(q[i]) : x;
      }
      sum = Block::sum(sum);
    }
    if (threadIdx.x == 0) {
      products[(n * side + a) * side + b] = sum;
      products[(n * side + b) * side + a] = sum;
    }
  }
}

}  // namespace agf::cuda
