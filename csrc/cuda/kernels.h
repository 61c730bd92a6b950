// Every CUDA kernel of the library, one struct each: its arguments, the blocks that it wants, and
// `run`, which is defined in the family's .cuh. nvcc, NVRTC, the C++ compiler (which fills these
// structs in and launches them, see launch.h) and the tests' simulator read the same lines, so
// nothing is declared twice and no argument can be packed in the wrong order.
//
// Layouts, names and nullable pointers (`?`) are those of cpu/kernels.h: "rows" is [outer, K] with
// K contiguous (channels-last pixels, or weights); "planes" is [N, C, S] with S contiguous.
#pragma once

#ifdef __CUDACC_RTC__
namespace agf {
using int64_t = long long;
}
#else
#include <stdint.h>
namespace agf {
using ::int64_t;
}
#endif

#ifdef __CUDACC__
#define AGF_DEVICE __device__ inline
#else
#define AGF_DEVICE inline
#endif

namespace agf::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // of every block
constexpr int kBlocks = 2;     // at least, on a multiprocessor: leaves 128 registers a thread
constexpr int kWarps = kThreads / kWarp;
// A row longer than this is reduced by a block, a shorter one by a warp.
constexpr int64_t kWarpRow = 2048;
// Channels whose gradients one block sums over the pixels of an image.
constexpr int kChannelBlock = 32;
// Terms of a linear combination at most, as on the CPU.
constexpr int kMostTerms = 8;

// The types that a kernel is a template of: `run<T>()`, `run<T, U>()`, or `run<A, T>()` where A is
// the type of the sampler's state, float32 or float64.
enum class Types { one, two, state_and_one };

struct Grid {
  unsigned x, y;
};

// A divisor known before the launch: n / d as the upper half of n times floor(2^64 / d) + 1, which
// is exact for n d < 2^64. GPUs have no division of 64-bit integers.
struct Divisor {
  int64_t value;
  unsigned long long inverse;
  Divisor(int64_t d = 1)
      : value(d), inverse(d > 1 ? ~0ull / static_cast<unsigned long long>(d) + 1 : 0) {}
};

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Every kernel strides over its grid, so a smaller one is right too.
inline Grid grid_of(int64_t x, int64_t y = 1) {
  return {static_cast<unsigned>(x < (1 << 20) ? x : 1 << 20),
          static_cast<unsigned>(y < (1 << 15) ? y : 1 << 15)};
}
inline Grid element_grid(int64_t count) { return grid_of(ceil_divide(count, kThreads * 8)); }
inline Grid row_grid(int64_t rows, int64_t length) {
  return grid_of(ceil_divide(rows, kWarps), ceil_divide(length, kWarp * 32));
}
inline Grid reduced_row_grid(int64_t rows, int64_t length) {
  return grid_of(length <= kWarpRow ? ceil_divide(rows, kWarps) : rows);
}
inline Grid plane_grid(int64_t N, int64_t S) { return grid_of(ceil_divide(S, kWarp), N); }

#define AGF_KERNEL(kernel, kinds)              \
  static constexpr const char* name = #kernel; \
  static constexpr Types types = Types::kinds

// y = mp_silu(x)
struct MpSilu {
  AGF_KERNEL(MpSilu, one);
  const void* x;
  void* y;
  int64_t count;
  Grid grid() const { return element_grid(count); }
  template <class T>
  AGF_DEVICE void run() const;
};
struct MpSiluBackward {
  AGF_KERNEL(MpSiluBackward, one);
  const void *grad, *x;
  void* grad_x;
  int64_t count;
  Grid grid() const { return element_grid(count); }
  template <class T>
  AGF_DEVICE void run() const;
};

// y = mp_silu(x * scale), scale [N, C]
struct ModulateMpSiluRows {
  AGF_KERNEL(ModulateMpSiluRows, one);
  const void *x, *scale;
  void* y;
  int64_t N, C;
  Divisor S;
  Grid grid() const { return row_grid(N * S.value, C); }
  template <class T>
  AGF_DEVICE void run() const;
};
struct ModulateMpSiluPlanes {
  AGF_KERNEL(ModulateMpSiluPlanes, one);
  const void *x, *scale;
  void* y;
  int64_t N, C, S;
  Grid grid() const { return row_grid(N * C, S); }
  template <class T>
  AGF_DEVICE void run() const;
};
struct ModulateMpSiluBackwardRows {
  AGF_KERNEL(ModulateMpSiluBackwardRows, one);
  const void *grad, *x, *scale;
  void *grad_x, *grad_scale;
  int64_t N, C, S;
  Grid grid() const { return grid_of(ceil_divide(C, kChannelBlock), N); }
  template <class T>
  AGF_DEVICE void run() const;
};
struct ModulateMpSiluBackwardPlanes {
  AGF_KERNEL(ModulateMpSiluBackwardPlanes, one);
  const void *grad, *x, *scale;
  void *grad_x, *grad_scale;
  int64_t N, C, S;
  Grid grid() const { return reduced_row_grid(N * C, S); }
  template <class T>
  AGF_DEVICE void run() const;
};

// y = clip(weight_a a + weight_b b)
struct MpSum {
  AGF_KERNEL(MpSum, one);
  const void *a, *b;
  void* y;
  double weight_a, weight_b, limit;
  int64_t count;
  Grid grid() const { return element_grid(count); }
  template <class T>
  AGF_DEVICE void run() const;
};
struct MpSumBackward {
  AGF_KERNEL(MpSumBackward, one);
  const void *grad, *a, *b;
  void *grad_a, *grad_b;
  double weight_a, weight_b, limit;
  int64_t count;
  Grid grid() const { return element_grid(count); }
  template <class T>
  AGF_DEVICE void run() const;
};

// y = [weight_a a, weight_b b] along the inner dimension, silu = mp_silu(y)
struct MpCat {
  AGF_KERNEL(MpCat, one);
  const void *a, *b;
  void *y, *silu /*?*/;
  int64_t outer, length_a, length_b;
  double weight_a, weight_b;
  Grid grid() const { return row_grid(outer, length_a + length_b); }
  template <class T>
  AGF_DEVICE void run() const;
};
struct MpCatBackward {
  AGF_KERNEL(MpCatBackward, one);
  const void *grad_y, *grad_silu /*?*/, *a, *b;
  void *grad_a, *grad_b;
  int64_t outer, length_a, length_b;
  double weight_a, weight_b;
  Grid grid() const { return row_grid(outer, length_a + length_b); }
  template <class T>
  AGF_DEVICE void run() const;
};

// y [N, F] = sqrt(2) cos(x f + phi); frequencies and phases in the compute type
struct MpFourier {
  AGF_KERNEL(MpFourier, one);
  const void *x, *freqs, *phases;
  void* y;
  int64_t N, F;
  Grid grid() const { return row_grid(N, F); }
  template <class T>
  AGF_DEVICE void run() const;
};

// An image batch [N, C, H, W] that is `x` resampled: mode -1 is down, 0 keep, 1 up.
struct Resampled {
  const void* x;
  int mode;
  int64_t N, C;
  Divisor H, W;
  int64_t pixels() const { return N * H.value * W.value; }
};

// y = gain * resampled
struct ResampleRows {
  AGF_KERNEL(ResampleRows, one);
  Resampled source;
  void* y;
  double gain;
  Grid grid() const { return row_grid(source.pixels(), source.C); }
  template <class T>
  AGF_DEVICE void run() const;
};
struct ResamplePlanes {
  AGF_KERNEL(ResamplePlanes, one);
  Resampled source;
  void* y;
  double gain;
  Grid grid() const { return row_grid(source.N * source.C * source.H.value, source.W.value); }
  template <class T>
  AGF_DEVICE void run() const;
};

// y = normalize(resampled) over C, silu = mp_silu(y)
struct NormalizeRows {
  AGF_KERNEL(NormalizeRows, one);
  Resampled source;
  void *y, *silu /*?*/;
  double eps;
  Grid grid() const { return reduced_row_grid(source.pixels(), source.C); }
  template <class T>
  AGF_DEVICE void run() const;
};
struct NormalizePlanes {
  AGF_KERNEL(NormalizePlanes, one);
  Resampled source;
  void *y, *silu /*?*/;
  double eps;
  Grid grid() const { return plane_grid(source.N, source.H.value * source.W.value); }
  template <class T>
  AGF_DEVICE void run() const;
};
struct NormalizeBackwardRows {
  AGF_KERNEL(NormalizeBackwardRows, one);
  const void *grad_y, *grad_silu /*?*/, *x;
  void* grad_x;
  double eps;
  int64_t rows, C;
  Grid grid() const { return reduced_row_grid(rows, C); }
  template <class T>
  AGF_DEVICE void run() const;
};
struct NormalizeBackwardPlanes {
  AGF_KERNEL(NormalizeBackwardPlanes, one);
  const void *grad_y, *grad_silu /*?*/, *x;
  void* grad_x;
  double eps;
  int64_t N, C, S;
  Grid grid() const { return plane_grid(N, S); }
  template <class T>
  AGF_DEVICE void run() const;
};

// A number that lies on the device: null stands for 1.
struct DeviceScalar {
  const void* data /*?*/;
  bool is_double;
};

// y = normalize(w) * gain * fan_in_scale, fan_in_scale = 1 / sqrt(K); forced: w = normalize(w)
// first, in place. y is of the second type.
struct MpWeight {
  AGF_KERNEL(MpWeight, two);
  void* w;
  bool forced;
  void* y;
  DeviceScalar gain;
  double eps, fan_in_scale;
  int64_t rows, K;
  Grid grid() const { return reduced_row_grid(rows, K); }
  template <class T, class U>
  AGF_DEVICE void run() const;
};
// grad (of the second type) -> grad_w, and the gradient of the gain as one partial sum per row
struct MpWeightBackward {
  AGF_KERNEL(MpWeightBackward, two);
  const void *grad, *w;
  void* grad_w;
  double* row_sums;
  DeviceScalar gain;
  double eps, fan_in_scale;
  int64_t rows, K;
  Grid grid() const { return reduced_row_grid(rows, K); }
  template <class T, class U>
  AGF_DEVICE void run() const;
};
// sum = the sum of the row sums, by one block, for a result that does not depend on the order
struct SumRows {
  AGF_KERNEL(SumRows, one);
  const double* row_sums;
  void* sum;
  int64_t rows;
  Grid grid() const { return {1, 1}; }
  template <class T>
  AGF_DEVICE void run() const;
};

// q, k, v [N, heads, S, ch] = normalize over ch of x, whose channel is (head * ch + c) * 3 + part
// and whose strides are x_n, x_c, x_s
struct Qkv {
  int64_t N;
  Divisor heads;
  int64_t ch;
  Divisor S;
  int64_t x_n, x_c, x_s;
  // Lanes that share a pixel's head: a power of two, so that each has 16 bytes of a part.
  int lanes() const {
    int n = 1;
    while (n < kWarp && n * 8 < ch) n *= 2;
    return n;
  }
  Grid grid() const {
    return grid_of(ceil_divide(N * heads.value * S.value, kWarps * (kWarp / lanes())));
  }
};
struct AttentionSplit {
  AGF_KERNEL(AttentionSplit, one);
  const void* x;
  void *q, *k, *v;
  double eps;
  Qkv shape;
  int lanes;
  Grid grid() const { return shape.grid(); }
  template <class T>
  AGF_DEVICE void run() const;
};
struct AttentionSplitBackward {
  AGF_KERNEL(AttentionSplitBackward, one);
  const void *grad_q, *grad_k, *grad_v, *x;
  void* grad_x;
  double eps;
  Qkv shape;
  int lanes;
  Grid grid() const { return shape.grid(); }
  template <class T>
  AGF_DEVICE void run() const;
};

// Noise levels and weight of a guided step, read from the device so that a captured graph serves
// any schedule.
struct DeviceLevels {
  const double *sigma, *sigma_next, *guidance;
  double sigma_data;  // of the preconditioning
  bool raw;           // whether the nets' outputs still need it
};
struct GuidedHeunFirst {
  AGF_KERNEL(GuidedHeunFirst, state_and_one);
  const void *x, *raw, *guide_raw /*?*/;
  void *x_next, *slope;
  DeviceLevels levels;
  int64_t count;
  Grid grid() const { return element_grid(count); }
  template <class A, class T>
  AGF_DEVICE void run() const;
};
struct GuidedHeunSecond {
  AGF_KERNEL(GuidedHeunSecond, state_and_one);
  const void *x, *x_next, *slope, *raw, *guide_raw /*?*/;
  void* x_new;
  DeviceLevels levels;
  int64_t count;
  Grid grid() const { return element_grid(count); }
  template <class A, class T>
  AGF_DEVICE void run() const;
};

// y[n] = sum of coefficients[n, m] terms[m][n] over m; [images, image] elements each
struct Combine {
  AGF_KERNEL(Combine, one);
  const void* terms[kMostTerms];
  const double* coefficients;
  void* y;
  int count;
  int64_t stride;  // from the coefficients of one image to those of the next; 0 for the same
  int64_t images, image;
  Grid grid() const { return grid_of(ceil_divide(image, kThreads * 8), images); }
  template <class T>
  AGF_DEVICE void run() const;
};
// products [images, count + 1, count + 1]; the last row and column are sums, and the last of all
// the number of elements
struct InnerProducts {
  AGF_KERNEL(InnerProducts, one);
  const void* terms[kMostTerms];
  double* products;
  int count;
  int64_t images, image;
  Grid grid() const { return grid_of(images * (count + 1) * (count + 1)); }
  template <class T>
  AGF_DEVICE void run() const;
};

#undef AGF_KERNEL

}  // namespace agf::cuda
