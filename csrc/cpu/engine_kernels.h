// The engine's loops, one for each kind of instruction: called by every thread of a team, each
// takes its share. engine/plan.h says what the instructions mean.
#pragma once
#include "cpu/isa.h"
#include "engine/plan.h"
#include "winograd.h"

namespace agf {

extern CpuKernel<void(const Load&, const ExecutionContext&)> load_kernel;
extern CpuKernel<void(const BlockPrologue&, const ExecutionContext&)> block_prologue_kernel;
extern CpuKernel<void(const Convolve&, const ExecutionContext&)> convolve_kernel;
extern CpuKernel<void(const Convolve&, const ExecutionContext&)> winograd_kernel;
extern CpuKernel<void(const Convolve&, const ExecutionContext&)> winograd_bf16_kernel;
extern CpuKernel<void(const SplitHeads&, const ExecutionContext&)> split_heads_kernel;
extern CpuKernel<void(const Attend&, const ExecutionContext&)> attend_kernel;
extern CpuKernel<void(const Store&, const ExecutionContext&)> store_kernel;

// c [16, 16] += a [16, n] b [n, 16] of elements of four bytes, which are one float32 or int32 of c
// and `bytes` / n of the factors: a product of AMX tiles, for the variants that have them alone.
extern CpuKernel<void(Storage, const char* a, const char* b, char* c, int64_t bytes)>
    tile_product_kernel;

// How much of an instruction is the thread's, in units of its own: pixels, or blocks of pixels or
// tiles times panels of outputs.
extern CpuKernel<void(const Instruction&, const ExecutionContext&, double* amount)> amount_kernel;

// Input channels whose weights Winograd's convolution in float32 transforms at a time.
constexpr int64_t kWinogradInputs = 128;

// The memory in which a thread makes a convolution by Winograd's algorithm: `tiles` tiles at a
// time, with a matrix for each point of their inputs, of the products that make three panels of
// outputs, and of the weights where those are transformed at each use. Bytes are from point to
// point.
struct WinogradLayout {
  int64_t points, tiles, inputs, products, weights = 0;

  AGF_INLINE explicit WinogradLayout(const Convolve& c)
      : points((c.winograd + 2) * (c.winograd + 2)) {
    constexpr int64_t outputs = 3 * kLanes;
    const int64_t product_bytes = 4 * outputs, input_bytes = c.in.pixel_bytes();
    if (c.in.storage == Storage::bf16) {
      tiles = multiple((int64_t{600} << 10) / (points * (input_bytes + product_bytes)), 64);
    } else {
      // Enough for the transform of the weights to be cheap beside their products. 2.25 MiB of
      // inputs at most, and 0.84 MiB of weights.
      tiles = multiple((int64_t{1} << 14) / c.in.channels, 32);
      weights = 4 * kWinogradInputs * outputs + kPointPadding;
    }
    inputs = tiles * input_bytes + kPointPadding;
    products = tiles * product_bytes + kPointPadding;
  }
  AGF_INLINE int64_t bytes() const { return points * (inputs + products + weights); }

 private:
  // `fit` rounded to a multiple of the tiles that a product takes, 8 to `most`.
  AGF_INLINE static int64_t multiple(int64_t fit, int64_t most) {
    return fit < 8 ? 8 : fit > most ? most : fit / 8 * 8;
  }
};

AGF_INLINE int64_t scratch_bytes(const Convolve& c) {
  return c.winograd ? WinogradLayout(c).bytes() : 0;
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
