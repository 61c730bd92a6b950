// The engine's loops, one for each kind of instruction: called by every thread of a team, each
// takes its share. engine/plan.h says what the instructions mean.
#pragma once
#include "cpu/isa.h"
#include "engine/plan.h"

namespace agf {

extern CpuKernel<void(const Load&, const Frame&)> load_kernel;
extern CpuKernel<void(const Enter&, const Frame&)> enter_kernel;
extern CpuKernel<void(const Convolve&, const Frame&)> convolve_kernel;
extern CpuKernel<void(const Convolve&, const Frame&)> winograd_kernel;
extern CpuKernel<void(const SplitHeads&, const Frame&)> split_heads_kernel;
extern CpuKernel<void(const Attend&, const Frame&)> attend_kernel;
extern CpuKernel<void(const Store&, const Frame&)> store_kernel;

// Tiles of 4x4 pixels that a thread transforms at a time, so that they stay in its L2 cache.
AGF_INLINE int64_t winograd_tiles(const Convolve& c) {
  constexpr int64_t kBudget = 900 << 10, kSums = 3 * kLanes;
  const int64_t fit = kBudget / (36 * 4 * (c.in.channels + kSums)) / 8 * 8;
  return fit < 8 ? 8 : fit > 64 ? 64 : fit;
}

// Whether F(4x4, 3x3) pays. It does a quarter of the products, but reads four times the weights
// for every block of tiles: from a distant cache that costs as much as it saves below 16 tiles;
// from the L2 cache it pays as soon as the lanes of a product are filled.
AGF_INLINE bool by_winograd(const Convolve& c, const Frame& f) {
  if (c.winograd < 0) return false;
  const int64_t mine = f.images * (c.in.height / 4) * (c.in.width / 4) / f.threads;
  const int64_t block = winograd_tiles(c), tiles = mine < block ? mine : block;
  const int64_t weight_bytes = 36 * 4 * c.in.channels * (c.out ? c.out : c.act).channels;
  return tiles >= (weight_bytes <= (1 << 20) ? 8 : 16);
}

AGF_INLINE int64_t scratch_bytes(const Convolve& c) {
  return c.winograd >= 0 ? 36 * 4 * winograd_tiles(c) * (c.in.channels + 3 * kLanes) : 0;
}
AGF_INLINE int64_t scratch_bytes(const Enter& e) {
  return 4 * (e.x.channels + (e.skip ? e.skip.channels : 0));
}
AGF_INLINE int64_t scratch_bytes(const Attend& a) { return 8 * 4 * a.from.pixels_stride; }
template <class Other>
AGF_INLINE int64_t scratch_bytes(const Other&) { return 0; }

}  // namespace agf
