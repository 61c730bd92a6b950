// attention_split: schema, checks and both sides.
#include "tensor.h"

namespace agf {
namespace {

struct Split {
  Format format;
  QkvShape shape;
  int64_t N;

  Split(const char* function, const Tensor& qkv, int64_t num_heads) : format(dense_format(qkv)) {
    check_image(function, "qkv", qkv);
    check(num_heads > 0 && qkv.size(1) % (3 * num_heads) == 0, function,
          ": num_heads must divide a third of the channels of qkv ", shape_of(qkv), ", got ",
          num_heads, "; change one of them");
    const Image image(qkv);
    const bool rows = format == Format::channels_last;
    N = image.N;
    shape = {num_heads,         image.C / (3 * num_heads), image.S,
             image.C * image.S, rows ? 1 : image.S,        rows ? image.C : 1};
  }
  cuda::Qkv qkv() const {
    return {N, shape.heads, shape.ch, shape.S, shape.x_n, shape.x_c, shape.x_s};
  }
  std::vector<int64_t> sizes() const { return {N, shape.heads, shape.S, shape.ch}; }
};

std::tuple<Tensor, Tensor, Tensor> attention_split(const Tensor& qkv, int64_t num_heads,
                                                   double eps) {
  const Dtype dtype = dtype_of("attention_split", "qkv", qkv);
  const Split s("attention_split", qkv, num_heads);
  const Tensor in = dense(qkv, s.format);
  const auto part = [&] { return empty(s.sizes(), qkv.scalar_type(), Format::contiguous, qkv); };
  Tensor q = part(), k = part(), v = part();
  if (runs_cuda_kernels(qkv)) {
    launch(qkv,
           cuda::AttentionSplit{in.const_data_ptr(), q.mutable_data_ptr(), k.mutable_data_ptr(),
                                v.mutable_data_ptr(), eps, s.qkv(), s.qkv().lanes()},
           dtype);
    return {q, k, v};
  }
  parallel(s.N * s.shape.S, qkv.size(1), [&](int64_t begin, int64_t end) {
    attention_split_kernel(dtype, in.const_data_ptr(), q.mutable_data_ptr(), k.mutable_data_ptr(),
                           v.mutable_data_ptr(), eps, s.shape, begin, end);
  });
  return {q, k, v};
}

Tensor attention_split_backward(const Tensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
                                const Tensor& qkv, int64_t num_heads, double eps) {
  const char* function = "attention_split_backward";
  const Dtype dtype = dtype_of(function, "qkv", qkv);
  const Split s(function, qkv, num_heads);
  for (const Tensor* grad : {&grad_q, &grad_k, &grad_v}) {
    check(sizes_of(*grad) == s.sizes() && grad->scalar_type() == qkv.scalar_type(), function,
          ": the gradients must have the shape and dtype of q, k and v, got ", shape_of(*grad),
          "; expand or convert them");
    check_device(function, "the gradients", *grad, "qkv", qkv);
  }
  const Tensor in = dense(qkv, s.format), q = dense(grad_q, Format::contiguous);
  const Tensor k = dense(grad_k, Format::contiguous), v = dense(grad_v, Format::contiguous);
  Tensor grad = empty_like(qkv, s.format);
  if (runs_cuda_kernels(qkv)) {
    launch(qkv,
           cuda::AttentionSplitBackward{q.const_data_ptr(), k.const_data_ptr(), v.const_data_ptr(),
                                        in.const_data_ptr(), grad.mutable_data_ptr(), eps, s.qkv(),
                                        s.qkv().lanes()},
           dtype);
    return grad;
  }
  parallel(s.N * s.shape.S, qkv.size(1), [&](int64_t begin, int64_t end) {
    attention_split_backward_kernel(dtype, q.const_data_ptr(), k.const_data_ptr(),
                                    v.const_data_ptr(), in.const_data_ptr(),
                                    grad.mutable_data_ptr(), eps, s.shape, begin, end);
  });
  return grad;
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def("attention_split(Tensor qkv, int num_heads, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "attention_split_backward(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor qkv, "
      "int num_heads, float eps) -> Tensor");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("attention_split", TORCH_BOX(&agf::attention_split));
  m.impl("attention_split_backward", TORCH_BOX(&agf::attention_split_backward));
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CUDA, m) { implement(m); }
