// What every kernel is made of: 16-byte loads and stores, loops over memory, sums.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/kernels.h"
#include "scalar.h"

// Memory of a block. The tests' simulator has its own, which it poisons.
#ifndef AGF_SHARED
#define AGF_SHARED(type, name, count) __shared__ type name[count]
#endif

namespace agf::cuda {

using namespace agf::AGF_ISA;

// ------------------------------------------------------------------------------ types in memory
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeType<T>::type;

AGF_DEVICE float widen(float x) { return x; }
AGF_DEVICE double widen(double x) { return x; }
AGF_DEVICE float widen(__half x) { return __half2float(x); }
AGF_DEVICE float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

AGF_DEVICE void narrow(float x, float* y) { *y = x; }
AGF_DEVICE void narrow(double x, double* y) { *y = x; }
AGF_DEVICE void narrow(float x, __half* y) { *y = __float2half_rn(x); }
AGF_DEVICE void narrow(float x, __nv_bfloat16* y) { *y = __float2bfloat16_rn(x); }

// Elements of T in 16 bytes.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// N elements side by side. Where they fill 16 bytes, the compiler moves them 16 bytes at a time.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T values[N];
};

template <int N, class T>
AGF_DEVICE void load(const T* p, Compute<T> (&x)[N]) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(p);
#pragma unroll
  for (int j = 0; j < N; ++j) x[j] = widen(pack.values[j]);
}

template <int N, class T>
AGF_DEVICE void store(const Compute<T> (&x)[N], T* p) {
  Pack<T, N> pack;
#pragma unroll
  for (int j = 0; j < N; ++j) narrow(x[j], &pack.values[j]);
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// Whether all of these (or those of them that are not null) can be moved 16 bytes at a time.
template <class... Pointers>
AGF_DEVICE bool aligned(Pointers... p) {
  return ((reinterpret_cast<unsigned long long>(p) | ...) & 15) == 0;
}

// n / d and n % d, n >= 0.
AGF_DEVICE int64_t operator/(int64_t n, const Divisor& d) {
  return d.inverse ? __umul64hi(n, d.inverse) : n;
}
AGF_DEVICE int64_t operator%(int64_t n, const Divisor& d) { return n - n / d * d.value; }

// How many neighbouring elements the body of a loop is to handle, as a type: it sizes arrays.
template <int N>
struct Width {
  static constexpr int value = N;
};
#define AGF_WIDTH(width) constexpr int N = decltype(width)::value

// ---------------------------------------------------------------------------------------- loops
AGF_DEVICE int lane() { return threadIdx.x % kWarp; }
AGF_DEVICE int warp() { return threadIdx.x / kWarp; }

// body(width, i) for all of [0, count): V elements a thread where memory is aligned.
template <int V, class Body>
AGF_DEVICE void for_elements(int64_t count, bool vectors, const Body& body) {
  const int64_t thread = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  const int64_t threads = gridDim.x * int64_t{kThreads};
  const int64_t tail = vectors ? count & -V : 0;
#pragma unroll 1
  for (int64_t i = thread * V; i < tail; i += threads * V) body(Width<V>{}, i);
#pragma unroll 1
  for (int64_t i = tail + thread; i < count; i += threads) body(Width<1>{}, i);
}

// body(width, row, c) for all of [rows, length]: a warp has a row, or a stretch of a long one.
// `vectors` means that rows begin aligned, thus that V divides the length.
template <int V, class Body>
AGF_DEVICE void for_rows(int64_t rows, int64_t length, bool vectors, const Body& body) {
  const int64_t first = blockIdx.y * kWarp + lane(), stride = gridDim.y * kWarp;
  for (int64_t row = blockIdx.x * int64_t{kWarps} + warp(); row < rows;
       row += gridDim.x * int64_t{kWarps}) {
    if (vectors) {
#pragma unroll 1
      for (int64_t c = first * V; c < length; c += stride * V) body(Width<V>{}, row, c);
    } else {
#pragma unroll 1
      for (int64_t c = first; c < length; c += stride) body(Width<1>{}, row, c);
    }
  }
}

// ------------------------------------------------------------------------------------------ sums
// Over `lanes` neighbouring lanes (a power of two). All 32 must call it.
template <class A>
AGF_DEVICE A lane_sum(A x, int lanes = kWarp) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// The threads that share one row, and the sum over them; `Warp` or `Block`.
struct Warp {
  static constexpr int size = kWarp;
  AGF_DEVICE static int rank() { return lane(); }
  template <class A>
  AGF_DEVICE static A sum(A x) {
    return lane_sum(x);
  }
};

struct Block {
  static constexpr int size = kThreads;
  AGF_DEVICE static int rank() { return threadIdx.x; }
  // All threads add up the warps' sums in the same order, so all have the same bits.
  template <class A>
  AGF_DEVICE static A sum(A x) {
    AGF_SHARED(A, sums, kWarps);
    x = lane_sum(x);
    if (lane() == 0) sums[warp()] = x;
    __syncthreads();
    A total = 0;
    for (int w = 0; w < kWarps; ++w) total += sums[w];
    __syncthreads();  // before the next sum writes there
    return total;
  }
};

// body(group, row): a warp to a short row, the block to a long one.
template <class Body>
AGF_DEVICE void for_reduced_rows(int64_t rows, int64_t length, const Body& body) {
  if (length <= kWarpRow) {
    for (int64_t row = blockIdx.x * int64_t{kWarps} + warp(); row < rows;
         row += gridDim.x * int64_t{kWarps}) {
      body(Warp{}, row);
    }
  } else {
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) body(Block{}, row);
  }
}

// body(width, c) for a row's [0, length), shared among the threads of a group.
template <int V, class Group, class Body>
AGF_DEVICE void for_row(Group group, int64_t length, bool vectors, const Body& body) {
  if (vectors) {
#pragma unroll 2
    for (int64_t c = group.rank() * V; c < length; c += group.size * V) body(Width<V>{}, c);
  } else {
#pragma unroll 1
    for (int64_t c = group.rank(); c < length; c += group.size) body(Width<1>{}, c);
  }
}

// Planes: a block takes 32 neighbouring pixels of an image, a lane each, and its warps share their
// channels. body(image, s), with s the lane's pixel, possibly beyond the last.
template <class Body>
AGF_DEVICE void for_pixels(int64_t images, int64_t pixels, const Body& body) {
  for (int64_t image = blockIdx.y; image < images; image += gridDim.y) {
    for (int64_t s = blockIdx.x * int64_t{kWarp}; s < pixels; s += gridDim.x * int64_t{kWarp}) {
      body(image, s + lane());
    }
  }
}

// The sum over the block's warps, for each lane.
template <class A>
AGF_DEVICE A sum_over_warps(A x) {
  AGF_SHARED(A, sums, kThreads);
  sums[threadIdx.x] = x;
  __syncthreads();
  A total = 0;
  for (int w = 0; w < kWarps; ++w) total += sums[w * kWarp + lane()];
  __syncthreads();  // before the next sum writes there
  return total;
}

}  // namespace agf::cuda
