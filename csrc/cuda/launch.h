// Launching a kernel of kernels.h on torch's current stream, whichever way it got compiled: ahead
// of time by nvcc, or at first use by NVRTC through CuPy. Knows no header of torch or CUDA.
#pragma once
#include <functional>
#include <string>

#include "cpu/convert.h"
#include "cuda/kernels.h"

namespace agf::cuda {

// What nvcc compiled, by types (a dtype, or 4 first + second); null where it did not.
template <class K>
inline const void* compiled[16] = {};

// A kernel for certain types.
struct KernelId {
  const char* name;  // of the struct in kernels.h
  Types kinds;
  int types;             // a dtype, or 4 first + second
  const void* compiled;  // by nvcc, or null
};

// Launches the kernel, whose arguments are the struct at `arguments`, on the current stream of
// CUDA device `device`. Throws std::runtime_error where that fails.
void launch(const KernelId& id, Grid grid, void* arguments, int device);

template <class K>
void launch(K kernel, int device, Dtype first, Dtype second = Dtype::f32) {
  const Grid grid = kernel.grid();
  if (grid.x == 0 || grid.y == 0) return;
  const int types = K::types == Types::one ? static_cast<int>(first)
                                           : 4 * static_cast<int>(first) + static_cast<int>(second);
  launch({K::name, K::types, types, compiled<K>[types]}, grid, &kernel, device);
}

// Compiles `kernel` (a name of kernels.h) for `types` ("float, __half") and returns the driver's
// handle of it on `device`, a CUfunction; throws std::runtime_error where it cannot.
using Loader =
    std::function<void*(const std::string& kernel, const std::string& types, int device)>;
void set_loader(Loader loader);

// Runs a kernel on the CPU, for tests: returns null, or what went wrong. While one is set, the
// operators take it for CPU tensors.
using Simulator = const char* (*)(const char* kernel, int types, unsigned x, unsigned y,
                                  const void* arguments);
void set_simulator(Simulator simulator);
bool simulating();

// Set by launch.cu where nvcc built it: launches a compiled kernel, returns an error or null.
using CompiledLauncher = const char* (*)(const void* kernel, Grid grid, void** arguments,
                                         void* stream);
inline CompiledLauncher compiled_launcher = nullptr;

}  // namespace agf::cuda
