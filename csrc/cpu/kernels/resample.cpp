// CPU loops of resampling by two.
#include "cpu/pixels.h"

namespace agf::AGF_ISA {
namespace {

void resample_rows(Dtype dtype, Resample mode, const void* x, void* y, double gain, int64_t C,
                   int64_t H, int64_t W, int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const A factor = A(gain);
    PixelRows<T> in(mode, x, C, H, W);
    Out<T> out(y);
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      in.seek(pixel);
      for_chunks(0, C, [&](int64_t c, int n) {
        const A* a = in.at(c, n);
        A* o = out.at(pixel * C + c);
        AGF_VECTORISE
        for (int j = 0; j < n; ++j) o[j] = a[j] * factor;
        out.put(pixel * C + c, n);
      });
    }
  });
}

void resample_planes(Dtype dtype, Resample mode, const void* x, void* y, double gain, int64_t,
                     int64_t H, int64_t W, int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const A factor = A(gain);
    PixelPlanes<T> in(mode, x, H, W);
    Out<T> out(y);
    for (int64_t line = begin; line < end; ++line) {
      for (int64_t w = 0; w < W; w += kPixelBlock) {
        const int n = static_cast<int>(W - w < kPixelBlock ? W - w : kPixelBlock);
        const A* a = in.at(line / H, line % H, w, n);
        A* o = out.at(line * W + w);
        AGF_VECTORISE
        for (int j = 0; j < n; ++j) o[j] = a[j] * factor;
        out.put(line * W + w, n);
      }
    }
  });
}

const RegisterCpuKernel registered[] = {
    {resample_rows_kernel, Isa::AGF_ISA, resample_rows},
    {resample_planes_kernel, Isa::AGF_ISA, resample_planes},
};

}  // namespace
}  // namespace agf::AGF_ISA
