// mp_weight and mp_weight_forced: schemas, checks and both sides.
#include "tensor.h"

namespace agf {
namespace {

// The gain, where it lies: one kernel reads it on its device, a CPU loop here.
cuda::DeviceScalar check_gain(const char* function, const std::optional<Tensor>& gain,
                              const Tensor& weight) {
  if (!gain) return {nullptr, false};
  check(gain->numel() == 1, function, ": gain must be a number or a 0-dim tensor, got ",
        shape_of(*gain), "; index it");
  const ScalarType type = gain->scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double, function,
        ": gain must be float32 or float64, got another dtype; use .float()");
  check_device(function, "gain", *gain, "weight", weight);
  return {gain->const_data_ptr(), type == ScalarType::Double};
}

double value_of(cuda::DeviceScalar gain) {
  if (!gain.data) return 1.0;
  return gain.is_double ? *static_cast<const double*>(gain.data)
                        : *static_cast<const float*>(gain.data);
}

double fan_in_scale(int64_t K) { return 1 / std::sqrt(static_cast<double>(K)); }

int64_t check_weight(const char* function, const Tensor& weight) {
  check(weight.dim() >= 2, function, ": weight must be [out, in, ...], got ", shape_of(weight),
        "; reshape it");
  return weight.size(0) ? weight.numel() / weight.size(0) : 0;
}

Tensor run(const char* function, const Tensor& weight, const std::optional<Tensor>& gain,
           bool forced, double eps, std::optional<ScalarType> type) {
  const Dtype dtype = dtype_of(function, "weight", weight);
  const ScalarType y_type = type.value_or(weight.scalar_type());
  const Dtype y_dtype = dtype_of(function, "dtype", y_type);
  const cuda::DeviceScalar g = check_gain(function, gain, weight);
  const int64_t K = check_weight(function, weight);
  const Tensor in = dense(weight, Format::contiguous);
  Tensor y = empty(sizes_of(weight), y_type, Format::contiguous, weight);
  if (runs_cuda_kernels(weight)) {
    launch(weight,
           cuda::MpWeight{in.mutable_data_ptr(), forced, y.mutable_data_ptr(), g, eps,
                          fan_in_scale(K), weight.size(0), K},
           dtype, y_dtype);
  } else {
    const double value = value_of(g);
    parallel(weight.size(0), K, [&](int64_t begin, int64_t end) {
      mp_weight_kernel(dtype, y_dtype, in.const_data_ptr(),
                       forced ? in.mutable_data_ptr() : nullptr, y.mutable_data_ptr(), value, eps,
                       K, begin, end);
    });
  }
  if (forced && in.get() != weight.get()) {  // the weight was not contiguous: write it back
    Tensor target = weight;
    torch::stable::copy_(target, in);
  }
  return y;
}

Tensor mp_weight(const Tensor& weight, std::optional<Tensor> gain, double eps,
                 std::optional<ScalarType> type) {
  return run("mp_weight", weight, gain, false, eps, type);
}

Tensor mp_weight_forced(Tensor weight, std::optional<Tensor> gain, double eps,
                        std::optional<ScalarType> type) {
  return run("mp_weight_forced", weight, gain, true, eps, type);
}

// The second gradient is that of the gain; without a gain it is that of the constant 1.
std::tuple<Tensor, Tensor> mp_weight_backward(const Tensor& grad, const Tensor& weight,
                                              std::optional<Tensor> gain, double eps) {
  const char* function = "mp_weight_backward";
  const Dtype dtype = dtype_of(function, "weight", weight);
  const Dtype y_dtype = dtype_of(function, "grad", grad);
  check(sizes_of(grad) == sizes_of(weight), function, ": grad must have the shape of weight ",
        shape_of(weight), ", got ", shape_of(grad), "; expand or slice it");
  check_device(function, "grad", grad, "weight", weight);
  const cuda::DeviceScalar g = check_gain(function, gain, weight);
  const int64_t K = check_weight(function, weight);
  const Tensor grad_in = dense(grad, Format::contiguous), in = dense(weight, Format::contiguous);
  Tensor grad_weight = empty_like(weight, Format::contiguous);
  const ScalarType gain_type = gain ? gain->scalar_type() : ScalarType::Double;
  Tensor grad_gain =
      empty(gain ? sizes_of(*gain) : std::vector<int64_t>{}, gain_type, Format::contiguous, weight);
  if (runs_cuda_kernels(weight)) {
    const int64_t rows = weight.size(0);
    Tensor sums = empty({rows}, ScalarType::Double, Format::contiguous, weight);
    double* row_sums = static_cast<double*>(sums.mutable_data_ptr());
    launch(weight,
           cuda::MpWeightBackward{grad_in.const_data_ptr(), in.const_data_ptr(),
                                  grad_weight.mutable_data_ptr(), row_sums, g, eps, fan_in_scale(K),
                                  rows, K},
           dtype, y_dtype);
    launch(weight, cuda::SumRows{row_sums, grad_gain.mutable_data_ptr(), rows},
           dtype_of(function, "gain", gain_type));
    return {grad_weight, grad_gain};
  }
  const double value = value_of(g);
  std::vector<double> row_sums(weight.size(0));
  parallel(weight.size(0), K, [&](int64_t begin, int64_t end) {
    mp_weight_backward_kernel(dtype, y_dtype, grad_in.const_data_ptr(), in.const_data_ptr(),
                              grad_weight.mutable_data_ptr(), row_sums.data(), value, eps, K, begin,
                              end);
  });
  double sum = 0;
  for (double row : row_sums) sum += row;
  if (gain_type == ScalarType::Double) {
    *static_cast<double*>(grad_gain.mutable_data_ptr()) = sum;
  } else {
    *static_cast<float*>(grad_gain.mutable_data_ptr()) = static_cast<float>(sum);
  }
  return {grad_weight, grad_gain};
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def("mp_weight(Tensor weight, Tensor? gain, float eps, ScalarType? dtype) -> Tensor");
  m.def(
      "mp_weight_forced(Tensor(a!) weight, Tensor? gain, float eps, ScalarType? dtype) -> Tensor");
  m.def(
      "mp_weight_backward(Tensor grad, Tensor weight, Tensor? gain, float eps) -> (Tensor, "
      "Tensor)");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("mp_weight", TORCH_BOX(&agf::mp_weight));
  m.impl("mp_weight_forced", TORCH_BOX(&agf::mp_weight_forced));
  m.impl("mp_weight_backward", TORCH_BOX(&agf::mp_weight_backward));
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CUDA, m) { implement(m); }
