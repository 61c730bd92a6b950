// CPU loops of the magnitude-preserving concatenation, with the mp_silu that follows it.
#include "approximate.h"
#include "cpu/chunks.h"
#include "cpu/kernels.h"

namespace agf::AGF_ISA {
namespace {

// body(from_b, source, y, n) for runs of y that lie within one part of one concatenated row.
template <class Body>
void for_parts(int64_t length_a, int64_t length_b, int64_t begin, int64_t end, Body&& body) {
  const int64_t length = length_a + length_b, inner = begin % length;
  bool from_b = inner >= length_a;
  int64_t in_part = from_b ? inner - length_a : inner;  // the place in the part of the first run
  int64_t a = begin / length * length_a + (from_b ? length_a : inner);  // what comes next of each
  int64_t b = begin / length * length_b + (from_b ? in_part : 0);
  for (int64_t i = begin; i < end; from_b = !from_b, in_part = 0) {
    const int64_t left = (from_b ? length_b : length_a) - in_part;
    const int64_t run = left < end - i ? left : end - i;
    int64_t& source = from_b ? b : a;
    for_chunks(0, run, [&](int64_t k, int n) { body(from_b, source + k, i + k, n); });
    source += run;
    i += run;
  }
}

void mp_cat_loop(Dtype dtype, const void* a, const void* b, void* y, void* silu, int64_t length_a,
                 int64_t length_b, double weight_a, double weight_b, int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    In<T> a_in(a), b_in(b);
    Out<T> out(y), silu_out(silu);
    const A weights[] = {A(weight_a), A(weight_b)};
    if (!silu_out) {  // whose constants would be loaded for each run
      for_parts(length_a, length_b, begin, end, [&](bool from_b, int64_t source, int64_t i, int n) {
        scale((from_b ? b_in : a_in).at(source, n), weights[from_b], out.at(i), n);
        out.put(i, n);
      });
      return;
    }
    for_parts(length_a, length_b, begin, end, [&](bool from_b, int64_t source, int64_t i, int n) {
      const A w = weights[from_b];
      const A* p = (from_b ? b_in : a_in).at(source, n);
      scale(p, w, out.at(i), n);
      A* s = silu_out.at(i);
      AGF_VECTORISE
      for (int j = 0; j < n; ++j) s[j] = mp_silu_for<T>(p[j] * w);
      silu_out.put(i, n);
      out.put(i, n);
    });
  });
}

void mp_cat_backward_loop(Dtype dtype, const void* grad_y, const void* grad_silu, const void* a,
                          const void* b, void* grad_a, void* grad_b, int64_t length_a,
                          int64_t length_b, double weight_a, double weight_b, int64_t begin,
                          int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    In<T> y_grad(grad_y), silu_grad(grad_silu), a_in(a), b_in(b);
    Out<T> a_out(grad_a), b_out(grad_b);
    for_parts(length_a, length_b, begin, end, [&](bool from_b, int64_t source, int64_t i, int n) {
      const A w = A(from_b ? weight_b : weight_a);
      Out<T>& out = from_b ? b_out : a_out;
      const A* g = y_grad.at(i, n);
      A* o = out.at(source);
      if (silu_grad) {
        const A* p = (from_b ? b_in : a_in).at(source, n);
        const A* s = silu_grad.at(i, n);
        AGF_VECTORISE
        for (int j = 0; j < n; ++j) o[j] = w * (g[j] + s[j] * mp_silu_slope_for<T>(p[j] * w));
      } else {
        AGF_VECTORISE
        for (int j = 0; j < n; ++j) o[j] = w * g[j];
      }
      out.put(source, n);
    });
  });
}

const RegisterCpuKernel registered[] = {
    {mp_cat_kernel, Isa::AGF_ISA, mp_cat_loop},
    {mp_cat_backward_kernel, Isa::AGF_ISA, mp_cat_backward_loop},
};

}  // namespace
}  // namespace agf::AGF_ISA
