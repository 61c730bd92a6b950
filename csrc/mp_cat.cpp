// mp_cat and mp_cat_mp_silu: schemas, checks and both sides.
#include "tensor.h"

namespace agf {
namespace {

// The concatenation along dimension 1, seen as rows of length_a + length_b values.
struct CatShape {
  Format format;
  int64_t length_a, length_b, outer;
  double weight_a, weight_b;
  std::vector<int64_t> sizes;

  CatShape(const char* function, const Tensor& a, const Tensor& b, double t)
      : format(dense_format(a)), sizes(sizes_of(a)) {
    bool same = a.dim() >= 2 && a.dim() == b.dim();
    for (int64_t i = 0; same && i < a.dim(); ++i) same = i == 1 || a.size(i) == b.size(i);
    check(same, function, ": b must have the shape of a ", shape_of(a),
          " but for dimension 1, got ", shape_of(b), "; expand or slice it");
    check(a.scalar_type() == b.scalar_type(), function,
          ": b must have the dtype of a, got another; convert it with .to()");
    check_device(function, "b", b, "a", a);
    const Image image_a(a), image_b(b);
    const bool rows = format == Format::channels_last;
    outer = rows ? image_a.N * image_a.S : image_a.N;
    length_a = image_a.C * (rows ? 1 : image_a.S);
    length_b = image_b.C * (rows ? 1 : image_b.S);
    sizes[1] = image_a.C + image_b.C;
    // EDM2 eq. 103
    const double n_a = static_cast<double>(image_a.C), n_b = static_cast<double>(image_b.C);
    const double scale = std::sqrt((n_a + n_b) / ((1 - t) * (1 - t) + t * t));
    weight_a = scale / std::sqrt(n_a) * (1 - t);
    weight_b = scale / std::sqrt(n_b) * t;
  }
};

Tensor run(const char* function, const Tensor& a, const Tensor& b, double t, Tensor* silu) {
  const Dtype dtype = dtype_of(function, "a", a);
  const CatShape s(function, a, b, t);
  const Tensor p = dense(a, s.format), q = dense(b, s.format);
  Tensor y = empty(s.sizes, a.scalar_type(), s.format, a);
  if (silu) *silu = empty(s.sizes, a.scalar_type(), s.format, a);
  if (runs_cuda_kernels(a)) {
    launch(a,
           cuda::MpCat{p.const_data_ptr(), q.const_data_ptr(), y.mutable_data_ptr(),
                       silu ? silu->mutable_data_ptr() : nullptr, s.outer, s.length_a, s.length_b,
                       s.weight_a, s.weight_b},
           dtype);
    return y;
  }
  parallel(s.outer * (s.length_a + s.length_b), 1, [&](int64_t begin, int64_t end) {
    mp_cat_kernel(dtype, p.const_data_ptr(), q.const_data_ptr(), y.mutable_data_ptr(),
                  silu ? silu->mutable_data_ptr() : nullptr, s.length_a, s.length_b, s.weight_a,
                  s.weight_b, begin, end);
  });
  return y;
}

Tensor mp_cat(const Tensor& a, const Tensor& b, double t) {
  return run("mp_cat", a, b, t, nullptr);
}

std::tuple<Tensor, Tensor> mp_cat_mp_silu(const Tensor& a, const Tensor& b, double t) {
  Tensor silu;
  Tensor y = run("mp_cat_mp_silu", a, b, t, &silu);
  return {y, silu};
}

// Of mp_cat where grad_silu is absent, of mp_cat_mp_silu where it is there.
std::tuple<Tensor, Tensor> mp_cat_backward(const Tensor& grad, std::optional<Tensor> grad_silu,
                                           const Tensor& a, const Tensor& b, double t) {
  const Dtype dtype = dtype_of("mp_cat_backward", "a", a);
  const CatShape s("mp_cat_backward", a, b, t);
  check(sizes_of(grad) == s.sizes && grad.scalar_type() == a.scalar_type(),
        "mp_cat_backward: grad must have the shape and dtype of the concatenation, got ",
        shape_of(grad), "; expand or convert it");
  check_device("mp_cat_backward", "grad", grad, "a", a);
  if (grad_silu) check_like("mp_cat_backward", "grad_silu", *grad_silu, "grad", grad);
  const Tensor g = dense(grad, s.format), p = dense(a, s.format), q = dense(b, s.format);
  if (grad_silu) grad_silu = dense(*grad_silu, s.format);
  Tensor grad_a = empty_like(a, s.format), grad_b = empty_like(b, s.format);
  if (runs_cuda_kernels(a)) {
    launch(a,
           cuda::MpCatBackward{
               g.const_data_ptr(), grad_silu ? grad_silu->const_data_ptr() : nullptr,
               p.const_data_ptr(), q.const_data_ptr(), grad_a.mutable_data_ptr(),
               grad_b.mutable_data_ptr(), s.outer, s.length_a, s.length_b, s.weight_a, s.weight_b},
           dtype);
    return {grad_a, grad_b};
  }
  parallel(s.outer * (s.length_a + s.length_b), 1, [&](int64_t begin, int64_t end) {
    mp_cat_backward_kernel(dtype, g.const_data_ptr(),
                           grad_silu ? grad_silu->const_data_ptr() : nullptr, p.const_data_ptr(),
                           q.const_data_ptr(), grad_a.mutable_data_ptr(), grad_b.mutable_data_ptr(),
                           s.length_a, s.length_b, s.weight_a, s.weight_b, begin, end);
  });
  return {grad_a, grad_b};
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def("mp_cat(Tensor a, Tensor b, float t) -> Tensor");
  m.def("mp_cat_mp_silu(Tensor a, Tensor b, float t) -> (Tensor, Tensor)");
  m.def(
      "mp_cat_backward(Tensor grad, Tensor? grad_silu, Tensor a, Tensor b, float t) -> "
      "(Tensor, Tensor)");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("mp_cat", TORCH_BOX(&agf::mp_cat));
  m.impl("mp_cat_mp_silu", TORCH_BOX(&agf::mp_cat_mp_silu));
  m.impl("mp_cat_backward", TORCH_BOX(&agf::mp_cat_backward));
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CUDA, m) { implement(m); }
