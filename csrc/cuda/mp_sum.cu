// The kernels of mp_sum.cuh, compiled by nvcc.
#include "cuda/mp_sum.cuh"

#include "cuda/compile.cuh"

namespace agf::cuda {
static const Compile<MpSum, MpSumBackward> mp_sum_kernels;
}
