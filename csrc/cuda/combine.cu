// The kernels of combine.cuh, compiled by nvcc.
#include "cuda/combine.cuh"

#include "cuda/compile.cuh"

namespace agf::cuda {
static const Compile<Combine, InnerProducts> combine_kernels;
}
