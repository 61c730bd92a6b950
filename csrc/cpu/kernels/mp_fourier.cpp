// CPU loop of the magnitude-preserving Fourier features.
#include "mp_fourier.h"

#include "cpu/chunks.h"
#include "cpu/kernels.h"

namespace agf::AGF_ISA {
namespace {

// A few hundred values an evaluation: libm's cosine is fast enough.
void mp_fourier_loop(Dtype dtype, const void* x, const void* freqs, const void* phases, void* y,
                     int64_t F, int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const A* f = static_cast<const A*>(freqs);
    const A* phi = static_cast<const A*>(phases);
    In<T> in(x);
    Out<T> out(y);
    for (int64_t i = begin; i < end; ++i) {
      const A value = *in.at(i, 1);
      for_chunks(0, F, [&](int64_t c, int n) {
        A* o = out.at(i * F + c);
        for (int j = 0; j < n; ++j) o[j] = mp_fourier(value, f[c + j], phi[c + j]);
        out.put(i * F + c, n);
      });
    }
  });
}

const RegisterCpuKernel registered = {mp_fourier_kernel, Isa::AGF_ISA, mp_fourier_loop};

}  // namespace
}  // namespace agf::AGF_ISA
