// Load, convert, store: the CPU loops work on short runs of float (or double) values, whatever
// the type in memory. float32 and float64 are used where they lie; the 16-bit types pass through
// a buffer that stays in L1.
#pragma once
#include <cstdlib>

#include "cpu/convert.h"

// The compute loops carry no dependence from one element to the next.
#define AGF_VECTORISE _Pragma("omp simd")

namespace agf::AGF_ISA {

constexpr int kChunk = 256;

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
template <class T>
constexpr bool kInPlace = sizeof(T) == sizeof(Compute<T>);

template <class T>
class In {
 public:
  using A = Compute<T>;
  explicit In(const void* p) : p_(static_cast<const T*>(p)) {}
  const A* at(std::int64_t i, int n) {
    if constexpr (kInPlace<T>) {
      return p_ + i;
    } else {
      widen(p_ + i, buffer_, n);
      return buffer_;
    }
  }
  explicit operator bool() const { return p_ != nullptr; }

 private:
  const T* p_;
  alignas(64) A buffer_[kInPlace<T> ? 1 : kChunk];
};

template <class T>
class Out {
 public:
  using A = Compute<T>;
  explicit Out(void* p) : p_(static_cast<T*>(p)) {}
  A* at(std::int64_t i) {
    if constexpr (kInPlace<T>) {
      return p_ + i;
    } else {
      return buffer_;
    }
  }
  void put(std::int64_t i, int n) {
    if constexpr (!kInPlace<T>) narrow(buffer_, p_ + i, n);
  }
  explicit operator bool() const { return p_ != nullptr; }

 private:
  T* p_;
  alignas(64) A buffer_[kInPlace<T> ? 1 : kChunk];
};

// body(i, n) for consecutive runs of at most kChunk elements.
template <class Body>
inline void for_chunks(std::int64_t begin, std::int64_t end, Body&& body) {
  for (std::int64_t i = begin; i < end; i += kChunk) {
    body(i, static_cast<int>(end - i < kChunk ? end - i : kChunk));
  }
}

template <class Body>
inline void by_dtype(Dtype dtype, Body&& body) {
  switch (dtype) {
    case Dtype::f32: return body(float{});
    case Dtype::f64: return body(double{});
    case Dtype::bf16: return body(bf16{});
    case Dtype::f16: return body(f16{});
  }
}

template <class A>
inline A sum_of_squares(const A* x, int n) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

// y = factor x
template <class A>
inline void scale(const A* x, A factor, A* y, int n) {
  AGF_VECTORISE
  for (int i = 0; i < n; ++i) y[i] = x[i] * factor;
}

template <class A>
inline A dot(const A* x, const A* y, int n) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

#if defined(__aarch64__)
// NEON's registers are short, so that a loop over them is half counting, and one register of sums
// would have each addition wait for the one before: 16 values at a time, in four sums.
inline float dot(const float* x, const float* y, int n) {
  float32x4_t sums[4] = {};
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int k = 0; k < 4; ++k) {
      sums[k] = vfmaq_f32(sums[k], vld1q_f32(x + i + 4 * k), vld1q_f32(y + i + 4 * k));
    }
  }
  float sum = vaddvq_f32(vaddq_f32(vaddq_f32(sums[0], sums[1]), vaddq_f32(sums[2], sums[3])));
  for (; i < n; ++i) sum += x[i] * y[i];
  return sum;
}
inline float sum_of_squares(const float* x, int n) { return dot(x, x, n); }

inline void scale(const float* x, float factor, float* y, int n) {
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    float32x4_t values[4];  // all of them loaded before one is stored: two by an instruction
    for (int k = 0; k < 4; ++k) values[k] = vmulq_n_f32(vld1q_f32(x + i + 4 * k), factor);
    for (int k = 0; k < 4; ++k) vst1q_f32(y + i + 4 * k, values[k]);
  }
  for (; i < n; ++i) y[i] = x[i] * factor;
}
#endif

// Scratch memory of one call, on a cache line; not std::vector, whose functions the linker would
// share between the variants for different instruction sets.
template <class A>
class Scratch {
 public:
  explicit Scratch(std::int64_t n)
      : p_(static_cast<A*>(std::aligned_alloc(64, (n * sizeof(A) + 64) / 64 * 64))) {
    if (!p_) std::abort();
  }
  ~Scratch() { std::free(p_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* get() const { return p_; }

 private:
  A* p_;
};

}  // namespace agf::AGF_ISA
