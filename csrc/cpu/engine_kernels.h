// The engine's loops, one for each kind of instruction: called by every thread of a team, each
// takes its share. engine/plan.h says what the instructions mean.
#pragma once
#include "cpu/isa.h"
#include "engine/plan.h"

namespace agf {

extern CpuKernel<void(const Load&, const ExecutionContext&)> load_kernel;
extern CpuKernel<void(const BlockPrologue&, const ExecutionContext&)> block_prologue_kernel;
extern CpuKernel<void(const Convolve&, const ExecutionContext&)> convolve_kernel;
extern CpuKernel<void(const Convolve&, const ExecutionContext&)> winograd_kernel;
extern CpuKernel<void(const Convolve&, const ExecutionContext&)> winograd_bf16_kernel;
extern CpuKernel<void(const SplitHeads&, const ExecutionContext&)> split_heads_kernel;
extern CpuKernel<void(const Attend&, const ExecutionContext&)> attend_kernel;
extern CpuKernel<void(const Store&, const ExecutionContext&)> store_kernel;

// Tiles of 4x4 pixels that a thread transforms at a time: enough for the transform of the weights
// to be cheap beside their products, and 2.25 MiB at most.
AGF_INLINE int64_t winograd_tiles(const Convolve& c) {
  const int64_t fit = (int64_t{1} << 14) / c.in.channels / 8 * 8;
  return fit < 8 ? 8 : fit > 32 ? 32 : fit;
}
// Input channels whose weights it transforms at a time: 0.84 MiB with 48 outputs.
constexpr int64_t kWinogradInputs = 128;

constexpr int64_t kWinogradPadding = 16;  // floats between the matrices of the 36 points

// The same in bf16, and the bytes that a tile takes with 48 outputs.
AGF_INLINE int64_t winograd_bf16_tile_bytes(const Convolve& c) {
  return (c.winograd + 2) * (c.winograd + 2) * (2 * c.in.channels + 4 * 3 * kLanes);
}
AGF_INLINE int64_t winograd_bf16_tiles(const Convolve& c) {
  const int64_t fit = (int64_t{600} << 10) / winograd_bf16_tile_bytes(c) / 8 * 8;
  return fit < 8 ? 8 : fit > 64 ? 64 : fit;
}

AGF_INLINE int64_t scratch_bytes(const Convolve& c) {
  if (!c.winograd) return 0;
  if (c.in.storage == Storage::bf16) {
    const int64_t points = (c.winograd + 2) * (c.winograd + 2);
    return winograd_bf16_tiles(c) * winograd_bf16_tile_bytes(c) + points * 128;
  }
  const int64_t tiles = winograd_tiles(c), outputs = 3 * kLanes;
  const int64_t floats = tiles * c.in.channels + tiles * outputs + kWinogradInputs * outputs;
  return 36 * 4 * (floats + 3 * kWinogradPadding);
}
AGF_INLINE int64_t scratch_bytes(const BlockPrologue& e) {
  return 4 * (e.x.channels + (e.skip ? e.skip.channels : 0));
}
AGF_INLINE int64_t scratch_bytes(const SplitHeads& s) { return 3 * kLanes * 4 * s.head_stride; }
AGF_INLINE int64_t scratch_bytes(const Attend& a) { return 8 * 4 * a.from.pixels_stride; }
template <class Other>
AGF_INLINE int64_t scratch_bytes(const Other&) {
  return 0;
}

}  // namespace agf
