// CUDA kernel of the magnitude-preserving Fourier features.
#pragma once
#include "cuda/primitives.cuh"
#include "mp_fourier.h"

namespace agf::cuda {

template <class T>
AGF_DEVICE void MpFourier::run() const {
  using A = Compute<T>;
  const T* in = static_cast<const T*>(x);
  const A *f_in = static_cast<const A*>(freqs), *phi_in = static_cast<const A*>(phases);
  T* out = static_cast<T*>(y);
  const bool vectors = F % kVector<T> == 0 && aligned(freqs, phases, y);
  for_rows<kVector<T>>(N, F, vectors, [&](auto width, int64_t row, int64_t c) {
    AGF_WIDTH(width);
    A f[N], phi[N];
    load(f_in + c, f);
    load(phi_in + c, phi);
    const A value = widen(in[row]);
    for (int j = 0; j < N; ++j) f[j] = mp_fourier(value, f[j], phi[j]);
    store(f, out + row * F + c);
  });
}

}  // namespace agf::cuda
