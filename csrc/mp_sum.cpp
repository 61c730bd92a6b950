// mp_sum: schema, checks and both sides.
#include "tensor.h"

namespace agf {
namespace {

struct SumWeights {
  double a, b, limit;
  SumWeights(double t, std::optional<double> clip)
      : limit(clip.value_or(std::numeric_limits<double>::infinity())) {
    const double norm = std::sqrt((1 - t) * (1 - t) + t * t);  // EDM2 eq. 88
    a = (1 - t) / norm;
    b = t / norm;
  }
};

Tensor mp_sum(const Tensor& a, const Tensor& b, double t, std::optional<double> clip) {
  const Dtype dtype = dtype_of("mp_sum", "a", a);
  check_like("mp_sum", "b", b, "a", a);
  const SumWeights weights(t, clip);
  const Format format = dense_format(a);
  const Tensor p = dense(a, format), q = dense(b, format);
  Tensor y = empty_like(a, format);
  if (runs_cuda_kernels(a)) {
    launch(a,
           cuda::MpSum{p.const_data_ptr(), q.const_data_ptr(), y.mutable_data_ptr(), weights.a,
                       weights.b, weights.limit, a.numel()},
           dtype);
    return y;
  }
  parallel(a.numel(), 1, [&](int64_t begin, int64_t end) {
    mp_sum_kernel(dtype, p.const_data_ptr(), q.const_data_ptr(), y.mutable_data_ptr(), weights.a,
                  weights.b, weights.limit, begin, end);
  });
  return y;
}

std::tuple<Tensor, Tensor> mp_sum_backward(const Tensor& grad, const Tensor& a, const Tensor& b,
                                           double t, std::optional<double> clip) {
  const Dtype dtype = dtype_of("mp_sum_backward", "a", a);
  check_like("mp_sum_backward", "b", b, "a", a);
  check_like("mp_sum_backward", "grad", grad, "a", a);
  const SumWeights weights(t, clip);
  const Format format = dense_format(a);
  const Tensor g = dense(grad, format), p = dense(a, format), q = dense(b, format);
  Tensor grad_a = empty_like(a, format), grad_b = empty_like(a, format);
  if (runs_cuda_kernels(a)) {
    launch(a,
           cuda::MpSumBackward{g.const_data_ptr(), p.const_data_ptr(), q.const_data_ptr(),
                               grad_a.mutable_data_ptr(), grad_b.mutable_data_ptr(), weights.a,
                               weights.b, weights.limit, a.numel()},
           dtype);
    return {grad_a, grad_b};
  }
  parallel(a.numel(), 1, [&](int64_t begin, int64_t end) {
    mp_sum_backward_kernel(dtype, g.const_data_ptr(), p.const_data_ptr(), q.const_data_ptr(),
                           grad_a.mutable_data_ptr(), grad_b.mutable_data_ptr(), weights.a,
                           weights.b, weights.limit, begin, end);
  });
  return {grad_a, grad_b};
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def("mp_sum(Tensor a, Tensor b, float t, float? clip) -> Tensor");
  m.def(
      "mp_sum_backward(Tensor grad, Tensor a, Tensor b, float t, float? clip) -> (Tensor, Tensor)");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("mp_sum", TORCH_BOX(&agf::mp_sum));
  m.impl("mp_sum_backward", TORCH_BOX(&agf::mp_sum_backward));
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CUDA, m) { implement(m); }
