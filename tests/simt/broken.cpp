// A sum over a block, right and broken in all the ways that the simulator is to notice.
#include <cstdint>
#include <cstring>
#include <string>

#include "simt.h"

#include "cuda/primitives.cuh"

namespace {

using namespace agf::cuda;

// y[0] = the sum of x, y[1] = the sum of 2 x, both over `count` elements, at most kThreads.
template <class Is>
void sums(Is broken, const float* x, float* y, int count) {
  AGF_SHARED(float, partial, kWarps);
  const int i = threadIdx.x;
  if (broken("returns early") && i == 7) return;
  for (int pass = 0; pass < 2; ++pass) {
    float value = i < count ? x[i] * (pass + 1) : 0.0f;
    if (broken("loads a vector off its alignment") && i == 0) {
      float vector[4];
      load(x + 1, vector);
      value += vector[0] - x[1];
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      const bool wrong = offset == 16 && broken("reads a lane of another warp");
      const bool short_mask = broken("leaves a lane out of the mask");
      if (broken("shuffles in half of the warp") && lane() >= 16) break;
      value += __shfl_xor_sync(short_mask ? 0xffff7fffu : ~0u, value, wrong ? 48 : offset);
    }
    const int slot = warp() + (broken("stores past the end of shared memory") ? 1 : 0);
    if (lane() == 0) partial[slot] = value;
    if (!broken("drops the first barrier")) {
      if (broken("has the barrier in a branch")) {
        if (i >= kThreads / 2) return;
        __syncthreads();
      } else if (broken("has two barriers for one")) {
        if (i < kThreads / 2) {
          __syncthreads();
        } else {
          __syncthreads();
          asm volatile("");  // keeps the two apart
        }
      } else {
        __syncthreads();
      }
    }
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += partial[w];
    if (!broken("drops the second barrier")) __syncthreads();
    if (i == (broken("writes from another thread") ? 9 : 0)) {
      y[broken("stores past the end") ? pass + 1 : pass] = total;
    }
  }
}

std::string error;

}  // namespace

extern "C" const char* run_sums(const char* how, const float* x, float* y, int count,
                                std::uint64_t seed) {
  static simt::Launch launch;
  const auto broken = [how](const char* what) { return std::strcmp(how, what) == 0; };
  error = launch.run({1, 1}, kThreads, seed, [&] { sums(broken, x, y, count); });
  return error.c_str();
}
