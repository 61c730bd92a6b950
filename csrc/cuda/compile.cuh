// Compiles kernels ahead of time with nvcc: a family's .cu names its kernels, launch.h finds them.
#pragma once
#include "cuda/launch.h"
#include "cuda/types.cuh"

namespace agf::cuda {

template <class Kernel, class... T>
__global__ void __launch_bounds__(kThreads, kBlocks) entry(const Kernel kernel) {
  kernel.template run<T...>();
}

template <class... Kernels>
struct Compile {
  struct Enter {
    template <class K, class... T>
    void at(int types) const {
      compiled<K>[types] = reinterpret_cast<const void*>(&entry<K, T...>);
    }
  };
  Compile() { (for_types<Kernels>(Enter{}), ...); }
};

}  // namespace agf::cuda
