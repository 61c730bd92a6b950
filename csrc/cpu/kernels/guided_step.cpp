// CPU loops of the guided Heun step. The textbook makes about twenty passes over the image for
// two preconditionings, the guidance and a half step; here each half is one pass.
#include "guided_step.h"

#include "cpu/chunks.h"
#include "cpu/kernels.h"

namespace agf::AGF_ISA {
namespace {

// The sampler's state is float32 or float64; the nets' outputs are of any type.
template <class Body>
void by_state_dtype(Dtype dtype, Body&& body) {
  if (dtype == Dtype::f64) {
    body(double{});
  } else {
    body(float{});
  }
}

void first_loop(Dtype dtype, Dtype raw_dtype, const void* x, const void* raw, const void* guide_raw,
                void* x_next, void* slope_out, GuidedLevels levels, int64_t begin, int64_t end) {
  by_state_dtype(dtype, [&](auto type) {
    by_dtype(raw_dtype, [&](auto raw_type) {
      using A = decltype(type);
      using R = decltype(raw_type);
      const GuidedScalars<A> s(levels.sigma, levels.delta, levels.guidance, levels.sigma_data,
                               levels.raw);
      In<A> x_in(x);
      In<R> raw_in(raw), guide_in(guide_raw ? guide_raw : raw);
      Out<A> next(x_next), slopes(slope_out);
      for_chunks(begin, end, [&](int64_t i, int n) {
        const A* a = x_in.at(i, n);
        const auto* r1 = raw_in.at(i, n);
        const auto* r0 = guide_in.at(i, n);
        A* o = next.at(i);
        A* d = slopes.at(i);
        AGF_VECTORISE
        for (int j = 0; j < n; ++j) {
          d[j] = slope(a[j], guided_denoised(a[j], A(r1[j]), A(r0[j]), s), s);
          o[j] = euler_step(a[j], d[j], s);
        }
      });
    });
  });
}

void second_loop(Dtype dtype, Dtype raw_dtype, const void* x, const void* x_next,
                 const void* slope_in, const void* raw, const void* guide_raw, void* x_new,
                 GuidedLevels levels, int64_t begin, int64_t end) {
  by_state_dtype(dtype, [&](auto type) {
    by_dtype(raw_dtype, [&](auto raw_type) {
      using A = decltype(type);
      using R = decltype(raw_type);
      const GuidedScalars<A> s(levels.sigma, levels.delta, levels.guidance, levels.sigma_data,
                               levels.raw);
      In<A> x_in(x), next_in(x_next), slopes(slope_in);
      In<R> raw_in(raw), guide_in(guide_raw ? guide_raw : raw);
      Out<A> out(x_new);
      for_chunks(begin, end, [&](int64_t i, int n) {
        const A* a = x_in.at(i, n);
        const A* b = next_in.at(i, n);
        const A* d = slopes.at(i, n);
        const auto* r1 = raw_in.at(i, n);
        const auto* r0 = guide_in.at(i, n);
        A* o = out.at(i);
        AGF_VECTORISE
        for (int j = 0; j < n; ++j) {
          const A d_next = slope(b[j], guided_denoised(b[j], A(r1[j]), A(r0[j]), s), s);
          o[j] = trapezoidal_step(a[j], d[j], d_next, s);
        }
      });
    });
  });
}

const RegisterCpuKernel registered[] = {
    {guided_heun_first_kernel, Isa::AGF_ISA, first_loop},
    {guided_heun_second_kernel, Isa::AGF_ISA, second_loop},
};

}  // namespace
}  // namespace agf::AGF_ISA
