// CPU loops of the magnitude-preserving sum.
#include "mp_sum.h"

#include "cpu/chunks.h"
#include "cpu/kernels.h"

namespace agf::AGF_ISA {
namespace {

void mp_sum_loop(Dtype dtype, const void* a, const void* b, void* y, double weight_a,
                 double weight_b, double limit, int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const A wa = A(weight_a), wb = A(weight_b), l = A(limit);
    In<T> a_in(a), b_in(b);
    Out<T> out(y);
    for_chunks(begin, end, [&](int64_t i, int n) {
      const A* p = a_in.at(i, n);
      const A* q = b_in.at(i, n);
      A* o = out.at(i);
      AGF_VECTORISE
      for (int j = 0; j < n; ++j) o[j] = clip(mp_sum(p[j], q[j], wa, wb), l);
      out.put(i, n);
    });
  });
}

void mp_sum_backward_loop(Dtype dtype, const void* grad, const void* a, const void* b, void* grad_a,
                          void* grad_b, double weight_a, double weight_b, double limit,
                          int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const A wa = A(weight_a), wb = A(weight_b), l = A(limit);
    In<T> grad_in(grad), a_in(a), b_in(b);
    Out<T> a_out(grad_a), b_out(grad_b);
    for_chunks(begin, end, [&](int64_t i, int n) {
      const A* g = grad_in.at(i, n);
      const A* p = a_in.at(i, n);
      const A* q = b_in.at(i, n);
      A* oa = a_out.at(i);
      A* ob = b_out.at(i);
      AGF_VECTORISE
      for (int j = 0; j < n; ++j) {
        const A t = g[j] * clip_slope(mp_sum(p[j], q[j], wa, wb), l);
        oa[j] = t * wa;
        ob[j] = t * wb;
      }
      a_out.put(i, n);
      b_out.put(i, n);
    });
  });
}

const RegisterCpuKernel registered[] = {
    {mp_sum_kernel, Isa::AGF_ISA, mp_sum_loop},
    {mp_sum_backward_kernel, Isa::AGF_ISA, mp_sum_backward_loop},
};

}  // namespace
}  // namespace agf::AGF_ISA
