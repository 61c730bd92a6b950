// CUDA kernels of resampling by two, and where the values of a resampled image come from, so that
// resampling costs no pass over memory of its own.
#pragma once
#include "cuda/primitives.cuh"
#include "resample.h"

namespace agf::cuda {

// A resampled image, read at one pixel (h, w) of its image n.
template <class T>
struct PixelReader {
  using A = Compute<T>;
  const T* x;
  int mode;
  int64_t C;
  Divisor H, W;
  int64_t source_H, source_W;

  AGF_DEVICE explicit PixelReader(const Resampled& r)
      : x(static_cast<const T*>(r.x)),
        mode(r.mode),
        C(r.C),
        H(r.H),
        W(r.W),
        source_H(mode < 0   ? 2 * H.value
                 : mode > 0 ? H.value / 2
                            : H.value),
        source_W(mode < 0   ? 2 * W.value
                 : mode > 0 ? W.value / 2
                            : W.value) {}

  // Rows: the first channel of the pixel's source, or of the first of its four sources.
  AGF_DEVICE const T* row(int64_t pixel) const {
    if (mode == 0) return x + pixel * C;
    const int64_t w = pixel % W, line = pixel / W, h = line % H, n = line / H;
    const int64_t source_h = mode < 0 ? 2 * h : h / 2, source_w = mode < 0 ? 2 * w : w / 2;
    return x + ((n * source_H + source_h) * source_W + source_w) * C;
  }
  template <int N>
  AGF_DEVICE void load_row(const T* row, int64_t c, A (&a)[N]) const {
    load(row + c, a);
    if (mode >= 0) return;
    A right[N], below[N], across[N];
    load(row + C + c, right);
    load(row + source_W * C + c, below);
    load(row + source_W * C + C + c, across);
    for (int j = 0; j < N; ++j) a[j] = mean_of_four(a[j], right[j], below[j], across[j]);
  }

  // Planes: one value.
  AGF_DEVICE A value(int64_t plane, int64_t h, int64_t w) const {
    const int64_t source_h = mode < 0 ? 2 * h : mode > 0 ? h / 2 : h;
    const int64_t source_w = mode < 0 ? 2 * w : mode > 0 ? w / 2 : w;
    const T* p = x + (plane * source_H + source_h) * source_W + source_w;
    if (mode >= 0) return widen(*p);
    return mean_of_four(widen(p[0]), widen(p[1]), widen(p[source_W]), widen(p[source_W + 1]));
  }
};

template <class T>
AGF_DEVICE void ResampleRows::run() const {
  using A = Compute<T>;
  const PixelReader<T> reader(source);
  T* out = static_cast<T*>(y);
  const A factor = A(gain);
  const int64_t C = source.C;
  const bool vectors = C % kVector<T> == 0 && aligned(source.x, y);
  for_rows<kVector<T>>(source.N * source.H.value * source.W.value, C, vectors,
                       [&](auto width, int64_t pixel, int64_t c) {
                         AGF_WIDTH(width);
                         A a[N];
                         reader.load_row(reader.row(pixel), c, a);
                         for (int j = 0; j < N; ++j) a[j] *= factor;
                         store(a, out + pixel * C + c);
                       });
}

template <class T>
AGF_DEVICE void ResamplePlanes::run() const {
  using A = Compute<T>;
  const PixelReader<T> reader(source);
  T* out = static_cast<T*>(y);
  const A factor = A(gain);
  const int64_t lines = source.N * source.C * source.H.value, W = source.W.value;
  for_rows<1>(lines, W, false, [&](auto, int64_t line, int64_t w) {
    narrow(reader.value(line / source.H, line % source.H, w) * factor, out + line * W + w);
  });
}

}  // namespace agf::cuda
