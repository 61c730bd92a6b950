// The kernels of resample.cuh, compiled by nvcc.
#include "cuda/resample.cuh"

#include "cuda/compile.cuh"

namespace agf::cuda {
static const Compile<ResampleRows, ResamplePlanes> resample_kernels;
}
