// The kernels of mp_cat.cuh, compiled by nvcc.
#include "cuda/mp_cat.cuh"

#include "cuda/compile.cuh"

namespace agf::cuda {
static const Compile<MpCat, MpCatBackward> mp_cat_kernels;
}
