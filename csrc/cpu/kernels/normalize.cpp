// CPU loops of pixel norm, fused with the resampling before it and the mp_silu after it.
// Unfused, the three read the image three times and write it three times; here the source is read
// once (its second reading is from L1) and the two results are written.
#include "normalize.h"

#include <cmath>

#include "approximate.h"
#include "cpu/pixels.h"

namespace agf::AGF_ISA {
namespace {

// Neither resampled before nor followed by mp_silu, whose constants would be loaded for each pixel.
template <class T>
void normalize_rows_alone(const void* x, void* y, double eps, int64_t C, int64_t begin,
                          int64_t end) {
  using A = Compute<T>;
  In<T> in(x);
  Out<T> out(y);
  for (int64_t row = begin * C; row < end * C; row += C) {
    A squares = 0;
    for_chunks(row, row + C, [&](int64_t i, int n) { squares += sum_of_squares(in.at(i, n), n); });
    const A factor = normalize_factor(squares, A(C), A(eps));
    for_chunks(row, row + C, [&](int64_t i, int n) {
      scale(in.at(i, n), factor, out.at(i), n);
      out.put(i, n);
    });
  }
}

void normalize_rows(Dtype dtype, Resample mode, const void* x, void* y, void* silu, double eps,
                    int64_t C, int64_t H, int64_t W, int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    if (mode == Resample::keep && !silu) {
      return normalize_rows_alone<T>(x, y, eps, C, begin, end);
    }
    PixelRows<T> in(mode, x, C, H, W);
    Out<T> out(y), silu_out(silu);
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      in.seek(pixel);
      A squares = 0;
      for_chunks(0, C, [&](int64_t c, int n) { squares += sum_of_squares(in.at(c, n), n); });
      const A factor = normalize_factor(squares, A(C), A(eps));
      for_chunks(0, C, [&](int64_t c, int n) {
        A* o = out.at(pixel * C + c);
        scale(in.at(c, n), factor, o, n);
        if (silu_out) {
          A* s = silu_out.at(pixel * C + c);
          AGF_VECTORISE
          for (int j = 0; j < n; ++j) s[j] = mp_silu_for<T>(o[j]);
          silu_out.put(pixel * C + c, n);
        }
        out.put(pixel * C + c, n);
      });
    }
  });
}

void normalize_planes(Dtype dtype, Resample mode, const void* x, void* y, void* silu, double eps,
                      int64_t C, int64_t H, int64_t W, int64_t begin, int64_t end) {
  const int64_t blocks = (W + kPixelBlock - 1) / kPixelBlock;
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    PixelPlanes<T> in(mode, x, H, W);
    Out<T> out(y), silu_out(silu);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t w = block % blocks * kPixelBlock, h = block / blocks % H;
      const int64_t image = block / blocks / H;
      const int n = static_cast<int>(W - w < kPixelBlock ? W - w : kPixelBlock);
      A factor[kPixelBlock] = {};
      for (int64_t c = 0; c < C; ++c) {
        const A* a = in.at(image * C + c, h, w, n);
        AGF_VECTORISE
        for (int j = 0; j < n; ++j) factor[j] += a[j] * a[j];
      }
      for (int j = 0; j < n; ++j) factor[j] = normalize_factor(factor[j], A(C), A(eps));
      for (int64_t c = 0; c < C; ++c) {
        const int64_t i = ((image * C + c) * H + h) * W + w;
        const A* a = in.at(image * C + c, h, w, n);
        A* o = out.at(i);
        AGF_VECTORISE
        for (int j = 0; j < n; ++j) o[j] = a[j] * factor[j];
        if (silu_out) {
          A* s = silu_out.at(i);
          AGF_VECTORISE
          for (int j = 0; j < n; ++j) s[j] = mp_silu_for<T>(o[j]);
          silu_out.put(i, n);
        }
        out.put(i, n);
      }
    }
  });
}

void normalize_backward_rows(Dtype dtype, const void* grad_y, const void* grad_silu, const void* x,
                             void* grad_x, double eps, int64_t C, int64_t, int64_t begin,
                             int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    In<T> y_in(grad_y), silu_in(grad_silu), in(x);
    Out<T> out(grad_x);
    Scratch<A> total(C);  // the gradient of y, with what came through mp_silu
    for (int64_t row = begin; row < end; ++row) {
      A squares = 0;
      for_chunks(0, C,
                 [&](int64_t c, int n) { squares += sum_of_squares(in.at(row * C + c, n), n); });
      const A factor = normalize_factor(squares, A(C), A(eps));
      A product = 0;
      for_chunks(0, C, [&](int64_t c, int n) {
        const A* a = in.at(row * C + c, n);
        const A* g = y_in.at(row * C + c, n);
        A* t = total.get() + c;
        if (silu_in) {
          const A* s = silu_in.at(row * C + c, n);
          AGF_VECTORISE
          for (int j = 0; j < n; ++j) t[j] = g[j] + s[j] * mp_silu_slope_for<T>(a[j] * factor);
        } else {
          AGF_VECTORISE
          for (int j = 0; j < n; ++j) t[j] = g[j];
        }
        product += dot(a, t, n);
      });
      const A back = normalize_backward_factor(squares, product, A(C), factor);
      for_chunks(0, C, [&](int64_t c, int n) {
        const A* a = in.at(row * C + c, n);
        const A* t = total.get() + c;
        A* o = out.at(row * C + c);
        AGF_VECTORISE
        for (int j = 0; j < n; ++j) o[j] = t[j] * factor - a[j] * back;
        out.put(row * C + c, n);
      });
    }
  });
}

void normalize_backward_planes(Dtype dtype, const void* grad_y, const void* grad_silu,
                               const void* x, void* grad_x, double eps, int64_t C, int64_t S,
                               int64_t begin, int64_t end) {
  const int64_t blocks = (S + kPixelBlock - 1) / kPixelBlock;
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    In<T> y_in(grad_y), silu_in(grad_silu), in(x);
    Out<T> out(grad_x);
    Scratch<A> total(C * kPixelBlock);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t s = block % blocks * kPixelBlock, image = block / blocks;
      const int n = static_cast<int>(S - s < kPixelBlock ? S - s : kPixelBlock);
      A squares[kPixelBlock] = {}, factor[kPixelBlock] = {}, product[kPixelBlock] = {};
      A back[kPixelBlock] = {};
      for (int64_t c = 0; c < C; ++c) {
        const A* a = in.at((image * C + c) * S + s, n);
        AGF_VECTORISE
        for (int j = 0; j < n; ++j) squares[j] += a[j] * a[j];
      }
      for (int j = 0; j < n; ++j) factor[j] = normalize_factor(squares[j], A(C), A(eps));
      for (int64_t c = 0; c < C; ++c) {
        const int64_t i = (image * C + c) * S + s;
        const A* a = in.at(i, n);
        const A* g = y_in.at(i, n);
        A* t = total.get() + c * kPixelBlock;
        if (silu_in) {
          const A* gs = silu_in.at(i, n);
          AGF_VECTORISE
          for (int j = 0; j < n; ++j) t[j] = g[j] + gs[j] * mp_silu_slope_for<T>(a[j] * factor[j]);
        } else {
          AGF_VECTORISE
          for (int j = 0; j < n; ++j) t[j] = g[j];
        }
        AGF_VECTORISE
        for (int j = 0; j < n; ++j) product[j] += a[j] * t[j];
      }
      for (int j = 0; j < n; ++j) {
        back[j] = normalize_backward_factor(squares[j], product[j], A(C), factor[j]);
      }
      for (int64_t c = 0; c < C; ++c) {
        const int64_t i = (image * C + c) * S + s;
        const A* a = in.at(i, n);
        const A* t = total.get() + c * kPixelBlock;
        A* o = out.at(i);
        AGF_VECTORISE
        for (int j = 0; j < n; ++j) o[j] = t[j] * factor[j] - a[j] * back[j];
        out.put(i, n);
      }
    }
  });
}

const RegisterCpuKernel registered[] = {
    {normalize_rows_kernel, Isa::AGF_ISA, normalize_rows},
    {normalize_planes_kernel, Isa::AGF_ISA, normalize_planes},
    {normalize_backward_rows_kernel, Isa::AGF_ISA, normalize_backward_rows},
    {normalize_backward_planes_kernel, Isa::AGF_ISA, normalize_backward_planes},
};

}  // namespace
}  // namespace agf::AGF_ISA
