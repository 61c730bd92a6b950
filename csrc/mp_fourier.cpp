// mp_fourier: schema, checks and both sides.
#include "tensor.h"

namespace agf {
namespace {

Tensor mp_fourier(const Tensor& x, const Tensor& freqs, const Tensor& phases) {
  const Dtype dtype = dtype_of("mp_fourier", "x", x);
  check(x.dim() == 1, "mp_fourier: x must have one dimension, got ", shape_of(x), "; flatten it");
  check(freqs.dim() == 1 && phases.dim() == 1 && freqs.size(0) == phases.size(0),
        "mp_fourier: freqs and phases must have one dimension of equal length, got ",
        shape_of(freqs), " and ", shape_of(phases), "; flatten or slice them");
  check_device("mp_fourier", "freqs", freqs, "x", x);
  check_device("mp_fourier", "phases", phases, "x", x);
  // The angle is computed in float32, or in float64 for float64 x: in 16 bits it would be noise.
  const ScalarType compute = dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
  const auto prepared = [&](const Tensor& t) {
    return dense(t.scalar_type() == compute ? t : torch::stable::to(t, compute),
                 Format::contiguous);
  };
  const Tensor in = dense(x, Format::contiguous), f = prepared(freqs), phi = prepared(phases);
  const int64_t N = x.size(0), F = f.size(0);
  Tensor y = empty({N, F}, x.scalar_type(), Format::contiguous, x);
  if (runs_cuda_kernels(x)) {
    launch(x,
           cuda::MpFourier{in.const_data_ptr(), f.const_data_ptr(), phi.const_data_ptr(),
                           y.mutable_data_ptr(), N, F},
           dtype);
    return y;
  }
  parallel(N, 16 * F, [&](int64_t begin, int64_t end) {  // a cosine costs about 16 elements
    mp_fourier_kernel(dtype, in.const_data_ptr(), f.const_data_ptr(), phi.const_data_ptr(),
                      y.mutable_data_ptr(), F, begin, end);
  });
  return y;
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def("mp_fourier(Tensor x, Tensor freqs, Tensor phases) -> Tensor");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("mp_fourier", TORCH_BOX(&agf::mp_fourier));
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CUDA, m) { implement(m); }
