// The kernels of guided_step.cuh, compiled by nvcc.
#include "cuda/guided_step.cuh"

#include "cuda/compile.cuh"

namespace agf::cuda {
static const Compile<GuidedHeunFirst, GuidedHeunSecond> guided_step_kernels;
}
