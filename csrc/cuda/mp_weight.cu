// The kernels of mp_weight.cuh, compiled by nvcc.
#include "cuda/mp_weight.cuh"

#include "cuda/compile.cuh"

namespace agf::cuda {
static const Compile<MpWeight, MpWeightBackward, SumRows> mp_weight_kernels;
}
