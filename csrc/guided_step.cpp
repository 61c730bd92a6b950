// guided_heun_first and guided_heun_second: schemas, checks and both sides.
#include "tensor.h"

namespace agf {
namespace {

const double* scalar(const char* function, const char* name, const Tensor& t, const Tensor& x) {
  check(t.numel() == 1 && t.scalar_type() == ScalarType::Double, function, ": ", name,
        " must be a 0-dim float64 tensor, got ", shape_of(t), "; use torch.tensor(value).double()");
  check_device(function, name, t, "x", x);
  return static_cast<const double*>(t.const_data_ptr());
}

// The checked and dense arguments that both halves share.
struct GuidedArguments {
  Dtype dtype, raw_dtype;
  Format format;
  Tensor raw;
  std::optional<Tensor> guide_raw;
  cuda::DeviceLevels device_levels;

  GuidedArguments(const char* function, const Tensor& x, const Tensor& raw_in,
                  const std::optional<Tensor>& guide_in, const Tensor& sigma,
                  const Tensor& sigma_next, const Tensor& guidance,
                  std::optional<double> sigma_data)
      : dtype(dtype_of(function, "x", x)),
        raw_dtype(dtype_of(function, "raw", raw_in)),
        format(dense_format(x)) {
    check(
        dtype == Dtype::f32 || dtype == Dtype::f64, function,
        ": x must be float32 or float64, the types of the sampler's state; convert it with .to()");
    check(sizes_of(raw_in) == sizes_of(x), function, ": raw must have the shape of x ", shape_of(x),
          ", got ", shape_of(raw_in), "; check the net's output");
    check_device(function, "raw", raw_in, "x", x);
    raw = dense(raw_in, format);
    if (guide_in) {
      check_like(function, "guide_raw", *guide_in, "raw", raw_in);
      guide_raw = dense(*guide_in, format);
    }
    device_levels = {scalar(function, "sigma", sigma, x),
                     scalar(function, "sigma_next", sigma_next, x),
                     scalar(function, "guidance", guidance, x), sigma_data.value_or(1.0),
                     sigma_data.has_value()};
  }
  // Read here, for the CPU loops.
  GuidedLevels levels(bool second) const {
    const double from = *device_levels.sigma, to = *device_levels.sigma_next;
    return {second ? to : from, to - from, *device_levels.guidance, device_levels.sigma_data,
            device_levels.raw};
  }
  const void* guide_data() const { return guide_raw ? guide_raw->const_data_ptr() : nullptr; }
};

std::tuple<Tensor, Tensor> guided_heun_first(const Tensor& x, const Tensor& raw,
                                             std::optional<Tensor> guide_raw, const Tensor& sigma,
                                             const Tensor& sigma_next, const Tensor& guidance,
                                             std::optional<double> sigma_data) {
  const GuidedArguments a("guided_heun_first", x, raw, guide_raw, sigma, sigma_next, guidance,
                          sigma_data);
  const Tensor in = dense(x, a.format);
  Tensor x_next = empty_like(x, a.format), slope = empty_like(x, a.format);
  if (runs_cuda_kernels(x)) {
    launch(x,
           cuda::GuidedHeunFirst{in.const_data_ptr(), a.raw.const_data_ptr(), a.guide_data(),
                                 x_next.mutable_data_ptr(), slope.mutable_data_ptr(),
                                 a.device_levels, x.numel()},
           a.dtype, a.raw_dtype);
    return {x_next, slope};
  }
  const GuidedLevels levels = a.levels(false);
  parallel(x.numel(), 1, [&](int64_t begin, int64_t end) {
    guided_heun_first_kernel(a.dtype, a.raw_dtype, in.const_data_ptr(), a.raw.const_data_ptr(),
                             a.guide_data(), x_next.mutable_data_ptr(), slope.mutable_data_ptr(),
                             levels, begin, end);
  });
  return {x_next, slope};
}

Tensor guided_heun_second(const Tensor& x, const Tensor& x_next, const Tensor& slope,
                          const Tensor& raw, std::optional<Tensor> guide_raw, const Tensor& sigma,
                          const Tensor& sigma_next, const Tensor& guidance,
                          std::optional<double> sigma_data) {
  const char* function = "guided_heun_second";
  check_like(function, "x_next", x_next, "x", x);
  check_like(function, "slope", slope, "x", x);
  const GuidedArguments a(function, x, raw, guide_raw, sigma, sigma_next, guidance, sigma_data);
  const Tensor in = dense(x, a.format), next = dense(x_next, a.format);
  const Tensor d = dense(slope, a.format);
  Tensor x_new = empty_like(x, a.format);
  if (runs_cuda_kernels(x)) {
    launch(x,
           cuda::GuidedHeunSecond{in.const_data_ptr(), next.const_data_ptr(), d.const_data_ptr(),
                                  a.raw.const_data_ptr(), a.guide_data(), x_new.mutable_data_ptr(),
                                  a.device_levels, x.numel()},
           a.dtype, a.raw_dtype);
    return x_new;
  }
  const GuidedLevels levels = a.levels(true);
  parallel(x.numel(), 1, [&](int64_t begin, int64_t end) {
    guided_heun_second_kernel(a.dtype, a.raw_dtype, in.const_data_ptr(), next.const_data_ptr(),
                              d.const_data_ptr(), a.raw.const_data_ptr(), a.guide_data(),
                              x_new.mutable_data_ptr(), levels, begin, end);
  });
  return x_new;
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def(
      "guided_heun_first(Tensor x, Tensor raw, Tensor? guide_raw, Tensor sigma, Tensor sigma_next, "
      "Tensor guidance, float? sigma_data) -> (Tensor, Tensor)");
  m.def(
      "guided_heun_second(Tensor x, Tensor x_next, Tensor slope, Tensor raw, Tensor? guide_raw, "
      "Tensor sigma, Tensor sigma_next, Tensor guidance, float? sigma_data) -> Tensor");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("guided_heun_first", TORCH_BOX(&agf::guided_heun_first));
  m.impl("guided_heun_second", TORCH_BOX(&agf::guided_heun_second));
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CUDA, m) { implement(m); }
