// conv3x3: schema, checks and both passes of the convolution that training takes on a CPU.
#include "tensor.h"

namespace agf {
namespace {

constexpr int64_t kPanel = 16;

// What a call computes: F(4x4, 3x3) or F(2x2, 3x3), see winograd.h.
struct Arguments {
  ConvTypes types;
  ConvShape shape;

  bool large() const { return types.factors == Dtype::f32; }
  int64_t tile() const { return large() ? common::WinogradF4::kTile : common::WinogradF2::kTile; }
  int64_t points() const { return (tile() + 2) * (tile() + 2); }
  int64_t tiles() const { return shape.N * (shape.H / tile()) * (shape.W / tile()); }
};

Arguments check_shape(const char* function, const Tensor& x, const Tensor& weight, bool widen) {
  check_image(function, "x", x);
  check_image(function, "weight", weight);
  const Dtype dtype = dtype_of(function, "x", x);
  check(dtype == Dtype::f32 || dtype == Dtype::bf16, function,
        ": x must be float32 or bfloat16, got another dtype; use torch.nn.functional.conv2d");
  check(weight.scalar_type() == x.scalar_type(), function,
        ": weight must have the dtype of x, got another; convert it with .to()");
  const ConvShape s{x.size(0), x.size(2), x.size(3), x.size(1), weight.size(0)};
  check(sizes_of(weight) == std::vector<int64_t>{s.K, s.C, 3, 3}, function,
        ": weight must be [out, ", s.C, ", 3, 3] for x ", shape_of(x), ", got ", shape_of(weight),
        "; reshape it");
  const Arguments a{{dtype, widen ? Dtype::f32 : dtype}, s};
  check(s.H % a.tile() == 0 && s.W % a.tile() == 0, function,
        ": x must have a height and a width divisible by ", a.tile(), ", got ", shape_of(x),
        "; use torch.nn.functional.conv2d");
  check(s.C % kPanel == 0 && s.K % kPanel == 0, function,
        ": weight must have channels divisible by ", kPanel, ", got ", shape_of(weight),
        "; use torch.nn.functional.conv2d");
  return a;
}

// y [N, outputs, H, W] from x, both channels-last; backward, from y's gradient to that of x.
Tensor convolve(const Tensor& x, const Tensor& weight, const Arguments& a, bool backward) {
  const ConvShape& s = a.shape;
  ConvShape pass = s;
  if (backward) std::swap(pass.C, pass.K);
  const Tensor in = dense(x, Format::channels_last), w = dense(weight, Format::channels_last);
  const int64_t factor_bytes = a.large() ? sizeof(float) : sizeof(bf16);
  const Tensor u = empty({a.points() * conv3x3_point(s.C, s.K, factor_bytes)}, ScalarType::Byte,
                         Format::contiguous, x);
  parallel(pass.K / kPanel, a.points() * kPanel * pass.C, [&](int64_t begin, int64_t end) {
    conv3x3_weights_kernel(a.types, w.const_data_ptr(), u.mutable_data_ptr(), s, backward, begin,
                           end);
  });
  const Tensor y = empty({s.N, pass.K, s.H, s.W}, x.scalar_type(), Format::channels_last, x);
  parallel(a.tiles(), a.points() * (s.C + s.K), [&](int64_t begin, int64_t end) {
    conv3x3_products_kernel(a.types, in.const_data_ptr(), u.const_data_ptr(), y.mutable_data_ptr(),
                            pass, begin, end);
  });
  return y;
}

Tensor conv3x3(const Tensor& x, const Tensor& weight, bool widen) {
  return convolve(x, weight, check_shape("conv3x3", x, weight, widen), false);
}

Arguments check_gradient(const char* function, const Tensor& grad, const Tensor& x,
                         const Tensor& weight, bool widen) {
  const Arguments a = check_shape(function, x, weight, widen);
  const ConvShape& s = a.shape;
  check(sizes_of(grad) == std::vector<int64_t>{s.N, s.K, s.H, s.W}, function,
        ": grad must be that of x convolved with weight, got ", shape_of(grad), "; reshape it");
  check(grad.scalar_type() == x.scalar_type(), function,
        ": grad must have the dtype of x, got another; convert it with .to()");
  return a;
}

Tensor conv3x3_backward_x(const Tensor& grad, const Tensor& x, const Tensor& weight, bool widen) {
  return convolve(grad, weight, check_gradient("conv3x3_backward_x", grad, x, weight, widen), true);
}

Tensor conv3x3_backward_weight(const Tensor& grad, const Tensor& x, const Tensor& weight,
                               bool widen) {
  const Arguments a = check_gradient("conv3x3_backward_weight", grad, x, weight, widen);
  const ConvShape& s = a.shape;
  const Tensor in = dense(x, Format::channels_last), g = dense(grad, Format::channels_last);
  // Threads share the output channels where weights are more than images, since each then reads and
  // writes sums of its own; else the tiles. The latter's parts have sums of their own, which are
  // added in order: the same bits whichever thread ends first.
  const int64_t count = a.tiles(), panels = s.K / kPanel;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t columns = count < 5 * s.K ? std::min(threads, panels) : 1;
  const int64_t parts = std::max<int64_t>(1, std::min(threads / columns, count / kPanel));
  const int64_t size = a.points() * s.C * s.K;
  const Tensor sums = empty({parts * size}, ScalarType::Float, Format::contiguous, x);
  float* du = static_cast<float*>(sums.mutable_data_ptr());
  const auto gradient = [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item / columns, column = item % columns;
      conv3x3_gradient_kernel(a.types, in.const_data_ptr(), g.const_data_ptr(), du + part * size, s,
                              count * part / parts, count * (part + 1) / parts,
                              panels * column / columns, panels * (column + 1) / columns);
    }
  };
  parallel(parts * columns, std::numeric_limits<int32_t>::max(), gradient);
  const Tensor dw = empty({s.K, s.C, 3, 3}, x.scalar_type(), Format::channels_last, x);
  parallel((s.C / kPanel) * (s.K / kPanel), parts * a.points() * kPanel * kPanel,
           [&](int64_t begin, int64_t end) {
             conv3x3_gradient_weights_kernel(a.types, du, parts, dw.mutable_data_ptr(), s, begin,
                                             end);
           });
  return dw;
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def("conv3x3(Tensor x, Tensor weight, bool widen) -> Tensor");
  m.def("conv3x3_backward_x(Tensor grad, Tensor x, Tensor weight, bool widen) -> Tensor");
  m.def("conv3x3_backward_weight(Tensor grad, Tensor x, Tensor weight, bool widen) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&agf::conv3x3));
  m.impl("conv3x3_backward_x", TORCH_BOX(&agf::conv3x3_backward_x));
  m.impl("conv3x3_backward_weight", TORCH_BOX(&agf::conv3x3_backward_weight));
}
