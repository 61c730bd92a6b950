// The kernels of mp_fourier.cuh, compiled by nvcc.
#include "cuda/mp_fourier.cuh"

#include "cuda/compile.cuh"

namespace agf::cuda {
static const Compile<MpFourier> mp_fourier_kernels;
}
