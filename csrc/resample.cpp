// resample: schema, checks and both sides. It is its own backward, up to a factor (`gain`).
#include "resample_shape.h"

namespace agf {
namespace {

Tensor resample(const Tensor& x, int64_t mode, double gain) {
  const Dtype dtype = dtype_of("resample", "x", x);
  const ResampleShape shape("resample", x, mode);
  const Format format = dense_format(x);
  const Tensor in = dense(x, format);
  Tensor y = empty(shape.sizes(), x.scalar_type(), format, x);
  const bool rows = format == Format::channels_last;
  if (runs_cuda_kernels(x)) {
    const cuda::Resampled source{
        in.const_data_ptr(), static_cast<int>(shape.mode), shape.N, shape.C, shape.H, shape.W};
    if (rows) {
      launch(x, cuda::ResampleRows{source, y.mutable_data_ptr(), gain}, dtype);
    } else {
      launch(x, cuda::ResamplePlanes{source, y.mutable_data_ptr(), gain}, dtype);
    }
    return y;
  }
  parallel(rows ? shape.N * shape.H * shape.W : shape.N * shape.C * shape.H,
           rows ? shape.C : shape.W, [&](int64_t begin, int64_t end) {
             (rows ? resample_rows_kernel : resample_planes_kernel)(
                 dtype, shape.mode, in.const_data_ptr(), y.mutable_data_ptr(), gain, shape.C,
                 shape.H, shape.W, begin, end);
           });
  return y;
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def("resample(Tensor x, int mode, float gain) -> Tensor");
}

static void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("resample", TORCH_BOX(&agf::resample));
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CUDA, m) { implement(m); }
