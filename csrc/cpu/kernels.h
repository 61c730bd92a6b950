// Every CPU loop of the library, one line each: raw pointers, sizes and a range [begin, end) of
// its outer index, which the callers in csrc/*.cpp split over threads.
//
// Layouts: "rows" is [outer, K] with K contiguous (channels-last pixels, or weights);
// "planes" is [N, C, S] with S = H * W contiguous. A pointer marked `?` may be null.
#pragma once
#include <cstdint>

#include "cpu/convert.h"
#include "cpu/isa.h"
#include "winograd.h"

namespace agf {

using std::int64_t;

enum class Resample : int { down = -1, keep = 0, up = 1 };

// Pixels of a plane that one step of a planar loop handles at once: C * 32 floats stay in L2.
constexpr int kPixelBlock = 32;

// Channels whose gradients one thread sums over the pixels of an image.
constexpr int kChannelBlock = 64;

// y = mp_silu(x)                                                             index: elements
extern CpuKernel<void(Dtype, const void* x, void* y, int64_t begin, int64_t end)> mp_silu_kernel;
extern CpuKernel<void(Dtype, const void* grad, const void* x, void* grad_x, int64_t begin,
                      int64_t end)>
    mp_silu_backward_kernel;

// y = mp_silu(x * scale), scale [N, C]; rows: S pixels of C                  index: pixels | planes
extern CpuKernel<void(Dtype, const void* x, const void* scale, void* y, int64_t C, int64_t S,
                      int64_t begin, int64_t end)>
    modulate_mp_silu_rows_kernel, modulate_mp_silu_planes_kernel;
//                                                    index: (n, kChannelBlock channels) | planes
extern CpuKernel<void(Dtype, const void* grad, const void* x, const void* scale, void* grad_x,
                      void* grad_scale, int64_t C, int64_t S, int64_t begin, int64_t end)>
    modulate_mp_silu_backward_rows_kernel, modulate_mp_silu_backward_planes_kernel;

// y = clip(weight_a a + weight_b b)                                          index: elements
extern CpuKernel<void(Dtype, const void* a, const void* b, void* y, double weight_a,
                      double weight_b, double limit, int64_t begin, int64_t end)>
    mp_sum_kernel;
extern CpuKernel<void(Dtype, const void* grad, const void* a, const void* b, void* grad_a,
                      void* grad_b, double weight_a, double weight_b, double limit, int64_t begin,
                      int64_t end)>
    mp_sum_backward_kernel;

// y = [weight_a a, weight_b b] along the inner dimension, silu = mp_silu(y)  index: elements of y
extern CpuKernel<void(Dtype, const void* a, const void* b, void* y, void* silu /*?*/,
                      int64_t length_a, int64_t length_b, double weight_a, double weight_b,
                      int64_t begin, int64_t end)>
    mp_cat_kernel;
extern CpuKernel<void(Dtype, const void* grad_y, const void* grad_silu /*?*/, const void* a,
                      const void* b, void* grad_a, void* grad_b, int64_t length_a, int64_t length_b,
                      double weight_a, double weight_b, int64_t begin, int64_t end)>
    mp_cat_backward_kernel;

// y = sqrt(2) cos(x f + phi); frequencies and phases in the compute type     index: N
extern CpuKernel<void(Dtype, const void* x, const void* freqs, const void* phases, void* y,
                      int64_t F, int64_t begin, int64_t end)>
    mp_fourier_kernel;

// y = gain * resample(x), y [N, C, H, W]             index: pixels of y | (n, c, h) lines of y
extern CpuKernel<void(Dtype, Resample, const void* x, void* y, double gain, int64_t C, int64_t H,
                      int64_t W, int64_t begin, int64_t end)>
    resample_rows_kernel, resample_planes_kernel;

// y = normalize(resample(x)) over C, silu = mp_silu(y)
//                                          index: pixels of y | (n, h, block of kPixelBlock in w)
extern CpuKernel<void(Dtype, Resample, const void* x, void* y, void* silu /*?*/, double eps,
                      int64_t C, int64_t H, int64_t W, int64_t begin, int64_t end)>
    normalize_rows_kernel, normalize_planes_kernel;
extern CpuKernel<void(Dtype, const void* grad_y, const void* grad_silu /*?*/, const void* x,
                      void* grad_x, double eps, int64_t C, int64_t S, int64_t begin, int64_t end)>
    normalize_backward_rows_kernel, normalize_backward_planes_kernel;

// y = normalize(w) * gain / sqrt(K); forced: w = normalize(w) first          index: rows
extern CpuKernel<void(Dtype, Dtype y_dtype, const void* w, void* forced_w /*?*/, void* y,
                      double gain, double eps, int64_t K, int64_t begin, int64_t end)>
    mp_weight_kernel;
// grad_gain holds one partial sum per row
extern CpuKernel<void(Dtype, Dtype y_dtype, const void* grad, const void* w, void* grad_w,
                      double* grad_gain, double gain, double eps, int64_t K, int64_t begin,
                      int64_t end)>
    mp_weight_backward_kernel;

// q, k, v [N, heads, S, ch] = normalize over ch of x, whose channel is (head * ch + c) * 3 + part
// and whose strides are x_n, x_c, x_s                                        index: (n, s)
struct QkvShape {
  int64_t heads, ch, S, x_n, x_c, x_s;
};
extern CpuKernel<void(Dtype, const void* x, void* q, void* k, void* v, double eps, QkvShape,
                      int64_t begin, int64_t end)>
    attention_split_kernel;
extern CpuKernel<void(Dtype, const void* grad_q, const void* grad_k, const void* grad_v,
                      const void* x, void* grad_x, double eps, QkvShape, int64_t begin,
                      int64_t end)>
    attention_split_backward_kernel;

// The two halves of the guided step, see guided_step.h                       index: elements
struct GuidedLevels {
  double sigma;       // noise level of the evaluation
  double delta;       // sigma_next - sigma of the step
  double guidance;    // w
  double sigma_data;  // of the preconditioning
  bool raw;           // whether the nets' outputs still need it
};
extern CpuKernel<void(Dtype, Dtype raw_dtype, const void* x, const void* raw,
                      const void* guide_raw /*?*/, void* x_next, void* slope, GuidedLevels,
                      int64_t begin, int64_t end)>
    guided_heun_first_kernel;
extern CpuKernel<void(Dtype, Dtype raw_dtype, const void* x, const void* x_next, const void* slope,
                      const void* raw, const void* guide_raw /*?*/, void* x_new, GuidedLevels,
                      int64_t begin, int64_t end)>
    guided_heun_second_kernel;

// y = sum of coefficients[n, m] terms[m] over m, for images of `image` elements; from the
// coefficients of one image to those of the next are `stride`                index: elements
constexpr int kMostTerms = 8;
struct Terms {
  const void* data[kMostTerms];
  int count;
};
extern CpuKernel<void(Dtype, const Terms&, const double* coefficients, int64_t stride,
                      int64_t image, void* y, int64_t begin, int64_t end)>
    combine_kernel;
// y [N, count + 1, count + 1] double: inner products, then sums, then `image`  index: images
extern CpuKernel<void(Dtype, const Terms&, int64_t image, void* y, int64_t begin, int64_t end)>
    inner_products_kernel;

// 3x3 convolution of x [N, H, W, C] with w [K, 3, 3, C], zeros around, by Winograd's F(4x4, 3x3) in
// 36 points where factors are float32, F(2x2, 3x3) in 16 where they are bf16: H and W are multiples
// of the tile's 4 or 2 pixels, C and K of 16.
struct ConvShape {
  int64_t N, H, W, C, K;
};
struct ConvTypes {
  Dtype stored;   // f32 or bf16: images, weights and results
  Dtype factors;  // f32, or bf16 where those are: what is multiplied
};
// Bytes from the weights of one point to those of the next.
inline __attribute__((always_inline)) int64_t conv3x3_point(int64_t C, int64_t K, int64_t bytes) {
  return C * K * bytes + kPointPadding;
}
// u [points, outputs / 16, inputs, 16], of w, or of its transpose for gradients index: outputs / 16
extern CpuKernel<void(ConvTypes, const void* w, void* u, ConvShape, bool backward, int64_t begin,
                      int64_t end)>
    conv3x3_weights_kernel;
// y [N, H, W, K]                                                               index: tiles
extern CpuKernel<void(ConvTypes, const void* x, const void* u, void* y, ConvShape, int64_t begin,
                      int64_t end)>
    conv3x3_products_kernel;
// du [C / 16, K / 16, points, 16, 16], of some of the tiles and some of the panels of K / 16
//                                                                      index: tiles, then panels
extern CpuKernel<void(ConvTypes, const void* x, const void* grad, float* du, ConvShape,
                      int64_t begin, int64_t end, int64_t first_panel, int64_t last_panel)>
    conv3x3_gradient_kernel;
// dw [K, 3, 3, C] from the sum of several du                           index: (C / 16) * (K / 16)
extern CpuKernel<void(ConvTypes, const float* du, int64_t parts, void* dw, ConvShape, int64_t begin,
                      int64_t end)>
    conv3x3_gradient_weights_kernel;

void choose_isa();  // called once, after all variants have registered

}  // namespace agf
