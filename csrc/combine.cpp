// combine and inner_products: schemas, checks and both sides. What ways of guiding are made of:
// linear combinations of the nets' outputs, with coefficients of each image, and the inner products
// from which such coefficients follow.
#include "tensor.h"

namespace agf {
namespace {

// Checks the terms against the first, and returns them dense in its layout.
std::vector<Tensor> dense_terms(const char* function, const std::vector<Tensor>& terms) {
  check(!terms.empty() && terms.size() <= kMostTerms, function, ": terms must be 1 to ", kMostTerms,
        " tensors, got ", terms.size(), "; combine some of them first");
  const Tensor& model = terms.front();
  check(model.dim() >= 1, function, ": terms must be batches [N, ...], got ", shape_of(model),
        "; add the dimension of the images");
  dtype_of(function, "terms", model);
  std::vector<Tensor> found;
  for (const Tensor& term : terms) {
    check_like(function, "terms", term, "the first", model);
    found.push_back(dense(term, dense_format(model)));
  }
  return found;
}

int64_t image_elements(const Tensor& x) { return x.size(0) ? x.numel() / x.size(0) : 0; }

Tensor combine(const Tensor& coefficients, const std::vector<Tensor>& terms) {
  const char* function = "combine";
  const std::vector<Tensor> in = dense_terms(function, terms);
  const Tensor& model = in.front();
  const int64_t N = model.size(0), M = static_cast<int64_t>(in.size());
  check(coefficients.dim() == 2 && coefficients.size(1) == M &&
            (coefficients.size(0) == 1 || coefficients.size(0) == N) &&
            coefficients.scalar_type() == ScalarType::Double,
        function, ": coefficients must be float64 [1 or ", N, ", ", M, "], one for each term, got ",
        shape_of(coefficients));
  check_device(function, "coefficients", coefficients, "the terms", model);
  const Tensor factors = dense(coefficients, Format::contiguous);
  const auto* c = static_cast<const double*>(factors.const_data_ptr());
  const int64_t stride = factors.size(0) == 1 ? 0 : M, image = image_elements(model);
  Tensor y = empty_like(terms.front(), dense_format(terms.front()));
  const Dtype dtype = dtype_of(function, "terms", model);
  if (runs_cuda_kernels(model)) {
    cuda::Combine kernel{{}, c, y.mutable_data_ptr(), static_cast<int>(M), stride, N, image};
    for (int64_t m = 0; m < M; ++m) kernel.terms[m] = in[m].const_data_ptr();
    launch(model, kernel, dtype);
    return y;
  }
  Terms pointers{{}, static_cast<int>(M)};
  for (int64_t m = 0; m < M; ++m) pointers.data[m] = in[m].const_data_ptr();
  parallel(model.numel(), M, [&](int64_t begin, int64_t end) {
    combine_kernel(dtype, pointers, c, stride, image, y.mutable_data_ptr(), begin, end);
  });
  return y;
}

Tensor inner_products(const std::vector<Tensor>& terms) {
  const char* function = "inner_products";
  const std::vector<Tensor> in = dense_terms(function, terms);
  const Tensor& model = in.front();
  const int64_t N = model.size(0), M = static_cast<int64_t>(in.size());
  Tensor y = empty({N, M + 1, M + 1}, ScalarType::Double, Format::contiguous, model);
  auto* out = static_cast<double*>(y.mutable_data_ptr());
  const int64_t image = image_elements(model);
  const Dtype dtype = dtype_of(function, "terms", model);
  if (runs_cuda_kernels(model)) {
    cuda::InnerProducts kernel{{}, out, static_cast<int>(M), N, image};
    for (int64_t m = 0; m < M; ++m) kernel.terms[m] = in[m].const_data_ptr();
    launch(model, kernel, dtype);
    return y;
  }
  Terms pointers{{}, static_cast<int>(M)};
  for (int64_t m = 0; m < M; ++m) pointers.data[m] = in[m].const_data_ptr();
  parallel(N, image * M * M, [&](int64_t begin, int64_t end) {
    inner_products_kernel(dtype, pointers, image, out, begin, end);
  });
  return y;
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def("combine(Tensor coefficients, Tensor[] terms) -> Tensor");
  m.def("inner_products(Tensor[] terms) -> Tensor");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("combine", TORCH_BOX(&agf::combine));
  m.impl("inner_products", TORCH_BOX(&agf::inner_products));
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CUDA, m) { implement(m); }
