// CPU loops of the weight preparation. The textbook writes the normalised weight, reads it,
// normalises it again, and writes and reads it twice more for the gain and the cast; here a row
// is read once from memory, and then from L1.
#include <cmath>

#include "cpu/chunks.h"
#include "cpu/kernels.h"
#include "normalize.h"

namespace agf::AGF_ISA {
namespace {

void mp_weight_loop(Dtype dtype, Dtype y_dtype, const void* w, void* forced_w, void* y, double gain,
                    double eps, int64_t K, int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    by_dtype(y_dtype, [&](auto y_type) {
      using T = decltype(type);
      using U = decltype(y_type);
      using A = Compute<T>;
      using B = Compute<U>;
      const A scale = A(gain / std::sqrt(static_cast<double>(K)));
      In<T> in(w);
      Out<T> forced(forced_w);
      Out<U> out(y);
      for (int64_t row = begin; row < end; ++row) {
        if (forced) {
          A squares = 0;
          for_chunks(row * K, (row + 1) * K,
                     [&](int64_t i, int n) { squares += sum_of_squares(in.at(i, n), n); });
          const A factor = normalize_factor(squares, A(K), A(eps));
          for_chunks(row * K, (row + 1) * K, [&](int64_t i, int n) {
            const A* a = in.at(i, n);
            A* o = forced.at(i);
            AGF_VECTORISE
            for (int j = 0; j < n; ++j) o[j] = a[j] * factor;
            forced.put(i, n);
          });
        }
        A squares = 0;
        for_chunks(row * K, (row + 1) * K,
                   [&](int64_t i, int n) { squares += sum_of_squares(in.at(i, n), n); });
        const A factor = normalize_factor(squares, A(K), A(eps)) * scale;
        for_chunks(row * K, (row + 1) * K, [&](int64_t i, int n) {
          const A* a = in.at(i, n);
          B* o = out.at(i);
          AGF_VECTORISE
          for (int j = 0; j < n; ++j) o[j] = B(a[j] * factor);
          out.put(i, n);
        });
      }
    });
  });
}

void mp_weight_backward_loop(Dtype dtype, Dtype y_dtype, const void* grad, const void* w,
                             void* grad_w, double* grad_gain, double gain, double eps, int64_t K,
                             int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    by_dtype(y_dtype, [&](auto y_type) {
      using T = decltype(type);
      using U = decltype(y_type);
      using A = Compute<T>;
      const double scale = 1 / std::sqrt(static_cast<double>(K));
      In<U> grad_in(grad);
      In<T> in(w);
      Out<T> out(grad_w);
      for (int64_t row = begin; row < end; ++row) {
        A squares = 0, product = 0;
        for_chunks(row * K, (row + 1) * K, [&](int64_t i, int n) {
          const A* a = in.at(i, n);
          const auto* g = grad_in.at(i, n);
          squares += sum_of_squares(a, n);
          A sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int j = 0; j < n; ++j) sum += a[j] * A(g[j]);
          product += sum;
        });
        const A factor = normalize_factor(squares, A(K), A(eps));
        grad_gain[row] = static_cast<double>(product) * factor * scale;
        const A back = normalize_backward_factor(squares, product, A(K), factor) * A(gain * scale);
        const A forth = factor * A(gain * scale);
        for_chunks(row * K, (row + 1) * K, [&](int64_t i, int n) {
          const A* a = in.at(i, n);
          const auto* g = grad_in.at(i, n);
          A* o = out.at(i);
          AGF_VECTORISE
          for (int j = 0; j < n; ++j) o[j] = A(g[j]) * forth - a[j] * back;
          out.put(i, n);
        });
      }
    });
  });
}

const RegisterCpuKernel registered[] = {
    {mp_weight_kernel, Isa::AGF_ISA, mp_weight_loop},
    {mp_weight_backward_kernel, Isa::AGF_ISA, mp_weight_backward_loop},
};

}  // namespace
}  // namespace agf::AGF_ISA
