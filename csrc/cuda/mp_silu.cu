// The kernels of mp_silu.cuh, compiled by nvcc.
#include "cuda/mp_silu.cuh"

#include "cuda/compile.cuh"

namespace agf::cuda {
static const Compile<MpSilu, MpSiluBackward, ModulateMpSiluRows, ModulateMpSiluPlanes,
                     ModulateMpSiluBackwardRows, ModulateMpSiluBackwardPlanes>
    mp_silu_kernels;
}
