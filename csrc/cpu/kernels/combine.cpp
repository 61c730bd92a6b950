// CPU loops of linear combinations and inner products of images. Plain PyTorch makes a pass for
// each product and each sum; here all terms are read once.
#include "cpu/chunks.h"
#include "cpu/kernels.h"

namespace agf::AGF_ISA {
namespace {

void combine_loop(Dtype dtype, const Terms& terms, const double* coefficients, int64_t stride,
                  int64_t image, void* y, int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    Out<T> out(y);
    // Image by image, for each has coefficients of its own.
    for (int64_t first = begin; first < end;) {
      const int64_t n = first / image;
      const int64_t last = (n + 1) * image < end ? (n + 1) * image : end;
      const double* c = coefficients + n * stride;
      for_chunks(first, last, [&](int64_t i, int count) {
        alignas(64) A sum[kChunk];
        for (int m = 0; m < terms.count; ++m) {
          In<T> in(terms.data[m]);
          const A* x = in.at(i, count);
          const A factor = A(c[m]);
          if (m == 0) {
            scale(x, factor, sum, count);
          } else {
            AGF_VECTORISE
            for (int j = 0; j < count; ++j) sum[j] += factor * x[j];
          }
        }
        A* o = out.at(i);
        for (int j = 0; j < count; ++j) o[j] = sum[j];
        out.put(i, count);
      });
      first = last;
    }
  });
}

// In double: what kinds of guidance need are small differences of these products.
void inner_products_loop(Dtype dtype, const Terms& terms, int64_t image, void* y, int64_t begin,
                         int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const int M = terms.count, side = M + 1;
    alignas(64) double values[kMostTerms][kChunk];
    for (int64_t n = begin; n < end; ++n) {
      double sums[kMostTerms + 1][kMostTerms + 1] = {};
      for_chunks(n * image, (n + 1) * image, [&](int64_t i, int count) {
        for (int m = 0; m < M; ++m) {
          In<T> in(terms.data[m]);
          const A* x = in.at(i, count);
          double total = 0;
          for (int j = 0; j < count; ++j) values[m][j] = x[j];
#pragma omp simd reduction(+ : total)
          for (int j = 0; j < count; ++j) total += values[m][j];
          sums[m][M] += total;
          for (int k = 0; k <= m; ++k) sums[k][m] += dot(values[k], values[m], count);
        }
      });
      sums[M][M] = static_cast<double>(image);
      auto* out = static_cast<double*>(y) + n * side * side;
      for (int a = 0; a < side; ++a) {
        for (int b = 0; b < side; ++b) out[a * side + b] = a <= b ? sums[a][b] : sums[b][a];
      }
    }
  });
}

const RegisterCpuKernel registered[] = {
    {combine_kernel, Isa::AGF_ISA, combine_loop},
    {inner_products_kernel, Isa::AGF_ISA, inner_products_loop},
};

}  // namespace
}  // namespace agf::AGF_ISA
