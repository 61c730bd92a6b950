// The kernels of normalize.cuh, compiled by nvcc.
#include "cuda/normalize.cuh"

#include "cuda/compile.cuh"

namespace agf::cuda {
static const Compile<NormalizeRows, NormalizePlanes, NormalizeBackwardRows, NormalizeBackwardPlanes>
    normalize_kernels;
}
