// normalize and resample_normalize_mp_silu: schemas, checks and both sides.
#include "tensor.h"

#include "resample_shape.h"

namespace agf {
namespace {

// Runs the fused loop; `silu` may be undefined.
void run(Dtype dtype, Resample mode, const Tensor& in, const Tensor& y, const Tensor* silu,
         double eps, bool rows, int64_t N, int64_t C, int64_t H, int64_t W) {
  void* silu_data = silu ? silu->mutable_data_ptr() : nullptr;
  if (runs_cuda_kernels(in)) {
    const cuda::Resampled source{in.const_data_ptr(), static_cast<int>(mode), N, C, H, W};
    if (rows) {
      launch(in, cuda::NormalizeRows{source, y.mutable_data_ptr(), silu_data, eps}, dtype);
    } else {
      launch(in, cuda::NormalizePlanes{source, y.mutable_data_ptr(), silu_data, eps}, dtype);
    }
    return;
  }
  const int64_t blocks = (W + kPixelBlock - 1) / kPixelBlock;
  parallel(rows ? N * H * W : N * H * blocks, rows ? C : C * std::min<int64_t>(W, kPixelBlock),
           [&](int64_t begin, int64_t end) {
             (rows ? normalize_rows_kernel : normalize_planes_kernel)(
                 dtype, mode, in.const_data_ptr(), y.mutable_data_ptr(), silu_data, eps, C, H, W,
                 begin, end);
           });
}

// [outer, K] or [N, C, S]: what the norm runs over. dim is 1 (pixels) or absent (weights).
struct NormShape {
  bool rows;
  int64_t outer, K, S;
};

NormShape norm_shape(const char* function, const Tensor& x, std::optional<int64_t> dim,
                     Format format) {
  check(x.dim() >= 2, function, ": x must have 2 or more dimensions, got ", shape_of(x),
        "; reshape it");
  check(!dim || *dim == 1, function, ": dim must be 1 (each pixel) or None (each weight), got ",
        dim.value_or(0), "; permute x");
  const Image image(x);
  if (!dim) return {true, image.N, image.C * image.S, 1};
  if (format == Format::channels_last) return {true, image.N * image.S, image.C, 1};
  return {image.S == 1, image.N, image.C, image.S};
}

// Weights are normalised in contiguous order: the norm runs over all but dimension 0.
Format norm_format(const Tensor& x, std::optional<int64_t> dim) {
  return dim ? dense_format(x) : Format::contiguous;
}

Tensor normalize(const Tensor& x, std::optional<int64_t> dim, double eps) {
  const Dtype dtype = dtype_of("normalize", "x", x);
  const Format format = norm_format(x, dim);
  const NormShape s = norm_shape("normalize", x, dim, format);
  const Tensor in = dense(x, format);
  Tensor y = empty_like(x, format);
  if (s.rows) {
    run(dtype, Resample::keep, in, y, nullptr, eps, true, s.outer, s.K, 1, 1);
  } else {
    run(dtype, Resample::keep, in, y, nullptr, eps, false, s.outer, s.K, 1, s.S);
  }
  return y;
}

Tensor backward(const char* function, const Tensor& grad, const Tensor* grad_silu, const Tensor& x,
                std::optional<int64_t> dim, double eps) {
  const Dtype dtype = dtype_of(function, "x", x);
  check_like(function, "grad", grad, "x", x);
  const Format format = norm_format(x, dim);
  const NormShape s = norm_shape(function, x, dim, format);
  const Tensor g = dense(grad, format), in = dense(x, format);
  std::optional<Tensor> g_silu;
  if (grad_silu) {
    check_like(function, "grad_silu", *grad_silu, "x", x);
    g_silu = dense(*grad_silu, format);
  }
  Tensor grad_x = empty_like(x, format);
  if (runs_cuda_kernels(x)) {
    const void* silu_data = g_silu ? g_silu->const_data_ptr() : nullptr;
    if (s.rows) {
      launch(x,
             cuda::NormalizeBackwardRows{g.const_data_ptr(), silu_data, in.const_data_ptr(),
                                         grad_x.mutable_data_ptr(), eps, s.outer, s.K},
             dtype);
    } else {
      launch(x,
             cuda::NormalizeBackwardPlanes{g.const_data_ptr(), silu_data, in.const_data_ptr(),
                                           grad_x.mutable_data_ptr(), eps, s.outer, s.K, s.S},
             dtype);
    }
    return grad_x;
  }
  const int64_t blocks = (s.S + kPixelBlock - 1) / kPixelBlock;
  parallel(s.rows ? s.outer : s.outer * blocks, s.rows ? s.K : s.K * kPixelBlock,
           [&](int64_t begin, int64_t end) {
             (s.rows ? normalize_backward_rows_kernel : normalize_backward_planes_kernel)(
                 dtype, g.const_data_ptr(), g_silu ? g_silu->const_data_ptr() : nullptr,
                 in.const_data_ptr(), grad_x.mutable_data_ptr(), eps, s.K, s.S, begin, end);
           });
  return grad_x;
}

Tensor normalize_backward(const Tensor& grad, const Tensor& x, std::optional<int64_t> dim,
                          double eps) {
  return backward("normalize_backward", grad, nullptr, x, dim, eps);
}

std::tuple<Tensor, Tensor> resample_normalize_mp_silu(const Tensor& x, int64_t mode, double eps) {
  const char* function = "resample_normalize_mp_silu";
  const Dtype dtype = dtype_of(function, "x", x);
  const ResampleShape shape(function, x, mode);
  const Format format = dense_format(x);
  const Tensor in = dense(x, format);
  Tensor y = empty(shape.sizes(), x.scalar_type(), format, x);
  Tensor silu = empty(shape.sizes(), x.scalar_type(), format, x);
  const bool rows = format == Format::channels_last;
  const bool keep = shape.mode == Resample::keep;  // then one line of H * W pixels
  run(dtype, shape.mode, in, y, &silu, eps, rows, shape.N, shape.C, keep ? 1 : shape.H,
      keep ? shape.H * shape.W : shape.W);
  return {y, silu};
}

// Of y = normalize(x), silu = mp_silu(y), x being the resampled image.
Tensor normalize_mp_silu_backward(const Tensor& grad_y, const Tensor& grad_silu, const Tensor& x,
                                  double eps) {
  return backward("normalize_mp_silu_backward", grad_y, &grad_silu, x, 1, eps);
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def("normalize(Tensor x, int? dim, float eps) -> Tensor");
  m.def("normalize_backward(Tensor grad, Tensor x, int? dim, float eps) -> Tensor");
  m.def("resample_normalize_mp_silu(Tensor x, int mode, float eps) -> (Tensor, Tensor)");
  m.def(
      "normalize_mp_silu_backward(Tensor grad_y, Tensor grad_silu, Tensor x, float eps) -> Tensor");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("normalize", TORCH_BOX(&agf::normalize));
  m.impl("normalize_backward", TORCH_BOX(&agf::normalize_backward));
  m.impl("resample_normalize_mp_silu", TORCH_BOX(&agf::resample_normalize_mp_silu));
  m.impl("normalize_mp_silu_backward", TORCH_BOX(&agf::normalize_mp_silu_backward));
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CUDA, m) { implement(m); }
