// conv3x3: schema, checks and both passes of the convolution that training takes on a CPU.
#include "tensor.h"

namespace agf {
namespace {

constexpr int64_t kPoints = 36, kPanel = 16;

int64_t tiles(const ConvShape& s) { return s.N * (s.H / 4) * (s.W / 4); }

void check_operand(const char* function, const char* name, const Tensor& x) {
  check_image(function, name, x);
  check(x.scalar_type() == ScalarType::Float, function, ": ", name,
        " must be float32, got another dtype; use torch.nn.functional.conv2d");
}

ConvShape check_shape(const char* function, const Tensor& x, const Tensor& weight) {
  check_operand(function, "x", x);
  check_operand(function, "weight", weight);
  const ConvShape s{x.size(0), x.size(2), x.size(3), x.size(1), weight.size(0)};
  check(sizes_of(weight) == std::vector<int64_t>{s.K, s.C, 3, 3}, function,
        ": weight must be [out, ", s.C, ", 3, 3] for x ", shape_of(x), ", got ", shape_of(weight),
        "; reshape it");
  check(s.H % 4 == 0 && s.W % 4 == 0, function, ": x must have a height and a width divisible by 4, got ",
        shape_of(x), "; use torch.nn.functional.conv2d");
  check(s.C % kPanel == 0 && s.K % kPanel == 0, function, ": weight must have channels divisible by ",
        kPanel, ", got ", shape_of(weight), "; use torch.nn.functional.conv2d");
  return s;
}

const float* data(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }
float* mutable_data(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

Tensor scratch(int64_t count, const Tensor& like) {
  return empty({count}, ScalarType::Float, Format::contiguous, like);
}

// y [N, outputs, H, W] from x, both channels-last; backward, from y's gradient to that of x.
Tensor convolve(const Tensor& x, const Tensor& weight, const ConvShape& s, bool backward) {
  ConvShape way = s;
  if (backward) std::swap(way.C, way.K);
  const Tensor in = dense(x, Format::channels_last), w = dense(weight, Format::channels_last);
  const Tensor u = scratch(kPoints * s.C * s.K, x);
  parallel(way.K / kPanel, kPoints * kPanel * way.C, [&](int64_t begin, int64_t end) {
    conv3x3_weights_kernel(data(w), mutable_data(u), s, backward, begin, end);
  });
  const Tensor y = empty({s.N, way.K, s.H, s.W}, ScalarType::Float, Format::channels_last, x);
  parallel(tiles(s), kPoints * (s.C + s.K), [&](int64_t begin, int64_t end) {
    conv3x3_products_kernel(data(in), data(u), mutable_data(y), way, begin, end);
  });
  return y;
}

Tensor conv3x3(const Tensor& x, const Tensor& weight) {
  return convolve(x, weight, check_shape("conv3x3", x, weight), false);
}

ConvShape check_gradient(const char* function, const Tensor& grad, const Tensor& x,
                         const Tensor& weight) {
  const ConvShape s = check_shape(function, x, weight);
  check_operand(function, "grad", grad);
  check(sizes_of(grad) == std::vector<int64_t>{s.N, s.K, s.H, s.W}, function,
        ": grad must be that of x convolved with weight, got ", shape_of(grad), "; reshape it");
  return s;
}

Tensor conv3x3_backward_x(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  return convolve(grad, weight, check_gradient("conv3x3_backward_x", grad, x, weight), true);
}

Tensor conv3x3_backward_weight(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  const ConvShape s = check_gradient("conv3x3_backward_weight", grad, x, weight);
  const Tensor in = dense(x, Format::channels_last), g = dense(grad, Format::channels_last);
  // Each part of the tiles has a sum of its own, and the sums are added in order: the same bits
  // whichever thread ends first.
  const int64_t count = tiles(s), threads = torch::stable::get_num_threads();
  const int64_t parts = std::max<int64_t>(1, std::min(threads, count / kPanel));
  const int64_t sum = kPoints * s.C * s.K;
  const Tensor du = scratch(parts * sum, x);
  parallel(parts, std::numeric_limits<int32_t>::max(), [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      conv3x3_gradient_kernel(data(in), data(g), mutable_data(du) + part * sum, s,
                              count * part / parts, count * (part + 1) / parts);
    }
  });
  const Tensor dw = empty({s.K, s.C, 3, 3}, ScalarType::Float, Format::channels_last, x);
  parallel((s.C / kPanel) * (s.K / kPanel), parts * kPoints * kPanel * kPanel,
           [&](int64_t begin, int64_t end) {
             conv3x3_gradient_weights_kernel(data(du), parts, mutable_data(dw), s, begin, end);
           });
  return dw;
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def("conv3x3(Tensor x, Tensor weight) -> Tensor");
  m.def("conv3x3_backward_x(Tensor grad, Tensor x, Tensor weight) -> Tensor");
  m.def("conv3x3_backward_weight(Tensor grad, Tensor x, Tensor weight) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&agf::conv3x3));
  m.impl("conv3x3_backward_x", TORCH_BOX(&agf::conv3x3_backward_x));
  m.impl("conv3x3_backward_weight", TORCH_BOX(&agf::conv3x3_backward_weight));
}
