// Launches what nvcc compiled.
#include <cuda_runtime_api.h>

#include "cuda/launch.h"

namespace agf::cuda {
namespace {

const char* run(const void* kernel, Grid grid, void** arguments, void* stream) {
  const cudaError_t error = cudaLaunchKernel(kernel, dim3(grid.x, grid.y), dim3(kThreads),
                                             arguments, 0, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const bool registered = (compiled_launcher = &run) != nullptr;

}  // namespace
}  // namespace agf::cuda
