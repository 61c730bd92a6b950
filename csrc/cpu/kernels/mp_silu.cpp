// CPU loops of mp_silu and of the modulation before it.
#include "approximate.h"

#include "cpu/chunks.h"
#include "cpu/kernels.h"

namespace agf::AGF_ISA {
namespace {

void mp_silu_loop(Dtype dtype, const void* x, void* y, int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    In<T> in(x);
    Out<T> out(y);
    for_chunks(begin, end, [&](int64_t i, int n) {
      const auto* a = in.at(i, n);
      auto* o = out.at(i);
      AGF_VECTORISE
      for (int j = 0; j < n; ++j) o[j] = mp_silu_for<T>(a[j]);
      out.put(i, n);
    });
  });
}

void mp_silu_backward_loop(Dtype dtype, const void* grad, const void* x, void* grad_x,
                           int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    In<T> grad_in(grad), in(x);
    Out<T> out(grad_x);
    for_chunks(begin, end, [&](int64_t i, int n) {
      const auto* g = grad_in.at(i, n);
      const auto* a = in.at(i, n);
      auto* o = out.at(i);
      AGF_VECTORISE
      for (int j = 0; j < n; ++j) o[j] = g[j] * mp_silu_slope_for<T>(a[j]);
      out.put(i, n);
    });
  });
}

void modulate_rows(Dtype dtype, const void* x, const void* scale, void* y, int64_t C, int64_t S,
                   int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    In<T> in(x), scale_in(scale);
    Out<T> out(y);
    for (int64_t first = begin; first < end;) {
      const int64_t n = first / S, last = (n + 1) * S < end ? (n + 1) * S : end;
      for_chunks(0, C, [&](int64_t c, int m) {
        const auto* s = scale_in.at(n * C + c, m);
        for (int64_t pixel = first; pixel < last; ++pixel) {
          const auto* a = in.at(pixel * C + c, m);
          auto* o = out.at(pixel * C + c);
          AGF_VECTORISE
          for (int j = 0; j < m; ++j) o[j] = mp_silu_for<T>(a[j] * s[j]);
          out.put(pixel * C + c, m);
        }
      });
      first = last;
    }
  });
}

void modulate_planes(Dtype dtype, const void* x, const void* scale, void* y, int64_t, int64_t S,
                     int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    In<T> in(x), scale_in(scale);
    Out<T> out(y);
    for (int64_t plane = begin; plane < end; ++plane) {
      const auto s = *scale_in.at(plane, 1);
      for_chunks(plane * S, (plane + 1) * S, [&](int64_t i, int m) {
        const auto* a = in.at(i, m);
        auto* o = out.at(i);
        AGF_VECTORISE
        for (int j = 0; j < m; ++j) o[j] = mp_silu_for<T>(a[j] * s);
        out.put(i, m);
      });
    }
  });
}

void modulate_backward_rows(Dtype dtype, const void* grad, const void* x, const void* scale,
                            void* grad_x, void* grad_scale, int64_t C, int64_t S, int64_t begin,
                            int64_t end) {
  const int64_t blocks = (C + kChannelBlock - 1) / kChannelBlock;
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    In<T> grad_in(grad), in(x), scale_in(scale);
    Out<T> out(grad_x), scale_out(grad_scale);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t n = block / blocks, c = block % blocks * kChannelBlock;
      const int m = static_cast<int>(C - c < kChannelBlock ? C - c : kChannelBlock);
      const A* s = scale_in.at(n * C + c, m);
      A sums[kChannelBlock] = {};
      for (int64_t pixel = n * S; pixel < (n + 1) * S; ++pixel) {
        const A* g = grad_in.at(pixel * C + c, m);
        const A* a = in.at(pixel * C + c, m);
        A* o = out.at(pixel * C + c);
        AGF_VECTORISE
        for (int j = 0; j < m; ++j) {
          const A t = g[j] * mp_silu_slope_for<T>(a[j] * s[j]);
          o[j] = t * s[j];
          sums[j] += t * a[j];
        }
        out.put(pixel * C + c, m);
      }
      A* o = scale_out.at(n * C + c);
      for (int j = 0; j < m; ++j) o[j] = sums[j];
      scale_out.put(n * C + c, m);
    }
  });
}

void modulate_backward_planes(Dtype dtype, const void* grad, const void* x, const void* scale,
                              void* grad_x, void* grad_scale, int64_t, int64_t S, int64_t begin,
                              int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    In<T> grad_in(grad), in(x), scale_in(scale);
    Out<T> out(grad_x), scale_out(grad_scale);
    for (int64_t plane = begin; plane < end; ++plane) {
      const A s = *scale_in.at(plane, 1);
      A sum = 0;
      for_chunks(plane * S, (plane + 1) * S, [&](int64_t i, int m) {
        const A* g = grad_in.at(i, m);
        const A* a = in.at(i, m);
        A* o = out.at(i);
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < m; ++j) {
          const A t = g[j] * mp_silu_slope_for<T>(a[j] * s);
          o[j] = t * s;
          sum += t * a[j];
        }
        out.put(i, m);
      });
      *scale_out.at(plane) = sum;
      scale_out.put(plane, 1);
    }
  });
}

const RegisterCpuKernel registered[] = {
    {mp_silu_kernel, Isa::AGF_ISA, mp_silu_loop},
    {mp_silu_backward_kernel, Isa::AGF_ISA, mp_silu_backward_loop},
    {modulate_mp_silu_rows_kernel, Isa::AGF_ISA, modulate_rows},
    {modulate_mp_silu_planes_kernel, Isa::AGF_ISA, modulate_planes},
    {modulate_mp_silu_backward_rows_kernel, Isa::AGF_ISA, modulate_backward_rows},
    {modulate_mp_silu_backward_planes_kernel, Isa::AGF_ISA, modulate_backward_planes},
};

}  // namespace
}  // namespace agf::AGF_ISA
