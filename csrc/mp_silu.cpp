// mp_silu and modulate_mp_silu: schemas, checks and both sides.
#include "tensor.h"

namespace agf {
namespace {

Tensor mp_silu(const Tensor& x) {
  const Dtype dtype = dtype_of("mp_silu", "x", x);
  const Format format = dense_format(x);
  const Tensor in = dense(x, format);
  Tensor y = empty_like(x, format);
  if (runs_cuda_kernels(x)) {
    launch(x, cuda::MpSilu{in.const_data_ptr(), y.mutable_data_ptr(), x.numel()}, dtype);
    return y;
  }
  parallel(x.numel(), 1, [&](int64_t begin, int64_t end) {
    mp_silu_kernel(dtype, in.const_data_ptr(), y.mutable_data_ptr(), begin, end);
  });
  return y;
}

Tensor mp_silu_backward(const Tensor& grad, const Tensor& x) {
  const Dtype dtype = dtype_of("mp_silu_backward", "x", x);
  check_like("mp_silu_backward", "grad", grad, "x", x);
  const Format format = dense_format(x);
  const Tensor g = dense(grad, format), in = dense(x, format);
  Tensor grad_x = empty_like(x, format);
  if (runs_cuda_kernels(x)) {
    launch(x,
           cuda::MpSiluBackward{g.const_data_ptr(), in.const_data_ptr(), grad_x.mutable_data_ptr(),
                                x.numel()},
           dtype);
    return grad_x;
  }
  parallel(x.numel(), 1, [&](int64_t begin, int64_t end) {
    mp_silu_backward_kernel(dtype, g.const_data_ptr(), in.const_data_ptr(),
                            grad_x.mutable_data_ptr(), begin, end);
  });
  return grad_x;
}

void check_modulation(const char* function, const Tensor& x, const Tensor& scale) {
  check_image(function, "x", x);
  check(scale.dim() == 2 && scale.size(0) == x.size(0) && scale.size(1) == x.size(1), function,
        ": scale must have the shape [N, C] of x ", shape_of(x), ", got ", shape_of(scale),
        "; expand or slice it");
  check(scale.scalar_type() == x.scalar_type(), function,
        ": scale must have the dtype of x, got another; convert it with .to()");
  check_device(function, "scale", scale, "x", x);
}

Tensor modulate_mp_silu(const Tensor& x, const Tensor& scale) {
  const Dtype dtype = dtype_of("modulate_mp_silu", "x", x);
  check_modulation("modulate_mp_silu", x, scale);
  const Format format = dense_format(x);
  const Tensor in = dense(x, format), s = dense(scale, Format::contiguous);
  Tensor y = empty_like(x, format);
  const Image image(x);
  const bool rows = format == Format::channels_last;
  if (runs_cuda_kernels(x)) {
    const auto run = [&](auto kernel) {
      kernel = {
          in.const_data_ptr(), s.const_data_ptr(), y.mutable_data_ptr(), image.N, image.C, image.S};
      launch(x, kernel, dtype);
    };
    rows ? run(cuda::ModulateMpSiluRows{}) : run(cuda::ModulateMpSiluPlanes{});
    return y;
  }
  parallel(image.N * (rows ? image.S : image.C), rows ? image.C : image.S,
           [&](int64_t begin, int64_t end) {
             (rows ? modulate_mp_silu_rows_kernel : modulate_mp_silu_planes_kernel)(
                 dtype, in.const_data_ptr(), s.const_data_ptr(), y.mutable_data_ptr(), image.C,
                 image.S, begin, end);
           });
  return y;
}

std::tuple<Tensor, Tensor> modulate_mp_silu_backward(const Tensor& grad, const Tensor& x,
                                                     const Tensor& scale) {
  const Dtype dtype = dtype_of("modulate_mp_silu_backward", "x", x);
  check_modulation("modulate_mp_silu_backward", x, scale);
  check_like("modulate_mp_silu_backward", "grad", grad, "x", x);
  const Format format = dense_format(x);
  const Tensor g = dense(grad, format), in = dense(x, format), s = dense(scale, Format::contiguous);
  Tensor grad_x = empty_like(x, format);
  Tensor grad_scale = empty_like(scale, Format::contiguous);
  const Image image(x);
  const bool rows = format == Format::channels_last;
  if (runs_cuda_kernels(x)) {
    const auto run = [&](auto kernel) {
      kernel = {g.const_data_ptr(),
                in.const_data_ptr(),
                s.const_data_ptr(),
                grad_x.mutable_data_ptr(),
                grad_scale.mutable_data_ptr(),
                image.N,
                image.C,
                image.S};
      launch(x, kernel, dtype);
    };
    rows ? run(cuda::ModulateMpSiluBackwardRows{}) : run(cuda::ModulateMpSiluBackwardPlanes{});
    return {grad_x, grad_scale};
  }
  const int64_t blocks = rows ? (image.C + kChannelBlock - 1) / kChannelBlock : image.C;
  parallel(image.N * blocks, image.S * (rows ? kChannelBlock : 1), [&](int64_t begin, int64_t end) {
    (rows ? modulate_mp_silu_backward_rows_kernel : modulate_mp_silu_backward_planes_kernel)(
        dtype, g.const_data_ptr(), in.const_data_ptr(), s.const_data_ptr(),
        grad_x.mutable_data_ptr(), grad_scale.mutable_data_ptr(), image.C, image.S, begin, end);
  });
  return {grad_x, grad_scale};
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def("mp_silu(Tensor x) -> Tensor");
  m.def("mp_silu_backward(Tensor grad, Tensor x) -> Tensor");
  m.def("modulate_mp_silu(Tensor x, Tensor scale) -> Tensor");
  m.def("modulate_mp_silu_backward(Tensor grad, Tensor x, Tensor scale) -> (Tensor, Tensor)");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("mp_silu", TORCH_BOX(&agf::mp_silu));
  m.impl("mp_silu_backward", TORCH_BOX(&agf::mp_silu_backward));
  m.impl("modulate_mp_silu", TORCH_BOX(&agf::modulate_mp_silu));
  m.impl("modulate_mp_silu_backward", TORCH_BOX(&agf::modulate_mp_silu_backward));
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CUDA, m) { implement(m); }
