// CPU loops of attention's normalise-and-split: from the interleaved output of one 1x1
// convolution to normalised queries, keys and values, each contiguous per head.
#include <cmath>

#include "cpu/chunks.h"
#include "cpu/kernels.h"
#include "normalize.h"

namespace agf::AGF_ISA {
namespace {

template <class T>
inline Compute<T> load(const T* p) {
  if constexpr (kInPlace<T>) {
    return *p;
  } else {
    return widen(*p);
  }
}
template <class T>
inline void store(Compute<T> x, T* p) {
  if constexpr (kInPlace<T>) {
    *p = x;
  } else {
    narrow(x, p);
  }
}

void attention_split_loop(Dtype dtype, const void* x, void* q, void* k, void* v, double eps,
                          QkvShape s, int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    T* parts[3] = {static_cast<T*>(q), static_cast<T*>(k), static_cast<T*>(v)};
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const int64_t n = pixel / s.S, position = pixel % s.S;
      const T* base = static_cast<const T*>(x) + n * s.x_n + position * s.x_s;
      for (int64_t head = 0; head < s.heads; ++head) {
        for (int part = 0; part < 3; ++part) {
          const T* in = base + (head * s.ch * 3 + part) * s.x_c;
          T* out = parts[part] + ((n * s.heads + head) * s.S + position) * s.ch;
          A squares = 0;
          for (int64_t c = 0; c < s.ch; ++c) {
            const A a = load(in + c * 3 * s.x_c);
            squares += a * a;
          }
          const A factor = normalize_factor(squares, A(s.ch), A(eps));
          for (int64_t c = 0; c < s.ch; ++c) store<T>(load(in + c * 3 * s.x_c) * factor, out + c);
        }
      }
    }
  });
}

void attention_split_backward_loop(Dtype dtype, const void* grad_q, const void* grad_k,
                                   const void* grad_v, const void* x, void* grad_x, double eps,
                                   QkvShape s, int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    const T* parts[3] = {static_cast<const T*>(grad_q), static_cast<const T*>(grad_k),
                         static_cast<const T*>(grad_v)};
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const int64_t n = pixel / s.S, position = pixel % s.S;
      const int64_t start = n * s.x_n + position * s.x_s;
      for (int64_t head = 0; head < s.heads; ++head) {
        for (int part = 0; part < 3; ++part) {
          const int64_t first = start + (head * s.ch * 3 + part) * s.x_c;
          const T* in = static_cast<const T*>(x) + first;
          T* out = static_cast<T*>(grad_x) + first;
          const T* grad = parts[part] + ((n * s.heads + head) * s.S + position) * s.ch;
          A squares = 0, product = 0;
          for (int64_t c = 0; c < s.ch; ++c) {
            const A a = load(in + c * 3 * s.x_c);
            squares += a * a;
            product += a * load(grad + c);
          }
          const A factor = normalize_factor(squares, A(s.ch), A(eps));
          const A back = normalize_backward_factor(squares, product, A(s.ch), factor);
          for (int64_t c = 0; c < s.ch; ++c) {
            const int64_t i = c * 3 * s.x_c;
            store<T>(load(grad + c) * factor - load(in + i) * back, out + i);
          }
        }
      }
    }
  });
}

const RegisterCpuKernel registered[] = {
    {attention_split_kernel, Isa::AGF_ISA, attention_split_loop},
    {attention_split_backward_kernel, Isa::AGF_ISA, attention_split_backward_loop},
};

}  // namespace
}  // namespace agf::AGF_ISA
