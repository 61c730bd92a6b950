// CPU loops of attention's normalise-and-split: from the interleaved output of one 1x1
// convolution to normalised queries, keys and values, each contiguous per head.
#include <cstring>

#include "cpu/chunks.h"
#include "cpu/kernels.h"
#include "normalize.h"

namespace agf::AGF_ISA {
namespace {

// The channels of one head at one pixel, [ch][3] with x_c values from one to the next in memory, as
// three runs [3][ch] in L1, where loops over them vectorise; and back.
template <class T>
class Interleaved {
 public:
  using A = Compute<T>;
  Interleaved(int64_t ch, int64_t x_c) : ch_(ch), x_c_(x_c), memory_(6 * ch) {}

  A* part(int i) { return memory_.get() + i * ch_; }

  void read(const T* from) {
    A* mixed = part(3);
    if (x_c_ == 1) {
      copy(from, mixed, 3 * ch_);
    } else {
      for (int64_t i = 0; i < 3 * ch_; ++i) copy(from + i * x_c_, mixed + i, 1);
    }
    A *a = part(0), *b = part(1), *c = part(2);
    AGF_VECTORISE
    for (int64_t i = 0; i < ch_; ++i) {
      a[i] = mixed[3 * i];
      b[i] = mixed[3 * i + 1];
      c[i] = mixed[3 * i + 2];
    }
  }

  void write(T* to) {
    A* mixed = part(3);
    const A *a = part(0), *b = part(1), *c = part(2);
    AGF_VECTORISE
    for (int64_t i = 0; i < ch_; ++i) {
      mixed[3 * i] = a[i];
      mixed[3 * i + 1] = b[i];
      mixed[3 * i + 2] = c[i];
    }
    if (x_c_ == 1) {
      put(mixed, to, 3 * ch_);
    } else {
      for (int64_t i = 0; i < 3 * ch_; ++i) put(mixed + i, to + i * x_c_, 1);
    }
  }

  static void copy(const T* from, A* to, int64_t n) {
    if constexpr (kInPlace<T>) {
      std::memcpy(to, from, n * sizeof(T));
    } else {
      widen(from, to, static_cast<int>(n));
    }
  }
  static void put(const A* from, T* to, int64_t n) {
    if constexpr (kInPlace<T>) {
      std::memcpy(to, from, n * sizeof(T));
    } else {
      narrow(from, to, static_cast<int>(n));
    }
  }

 private:
  int64_t ch_, x_c_;
  Scratch<A> memory_;
};

void attention_split_loop(Dtype dtype, const void* x, void* q, void* k, void* v, double eps,
                          QkvShape s, int64_t begin, int64_t end) {
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Compute<T>;
    T* parts[3] = {static_cast<T*>(q), static_cast<T*>(k), static_cast<T*>(v)};
    Interleaved<T> head_of(s.ch, s.x_c);
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const int64_t n = pixel / s.S, position = pixel % s.S;
      const T* base = static_cast<const T*>(x) + n * s.x_n + position * s.x_s;
      for (int64_t head = 0; head < s.heads; ++head) {
        head_of.read(base + head * s.ch * 3 * s.x_c);
        const int64_t to = ((n * s.heads + head) * s.S + position) * s.ch;
        for (int part = 0; part < 3; ++part) {
          A* a = head_of.part(part);
          const A squares = sum_of_squares(a, static_cast<int>(s.ch));
          const A factor = normalize_factor(squares, A(s.ch), A(eps));
          AGF_VECTORISE
          for (int64_t c = 0; c < s.ch; ++c) a[c] *= factor;
          head_of.put(a, parts[part] + to, s.ch);
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
    Interleaved<T> head_of(s.ch, s.x_c);
    Scratch<A> grad(s.ch);
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const int64_t n = pixel / s.S, position = pixel % s.S;
      const int64_t start = n * s.x_n + position * s.x_s;
      for (int64_t head = 0; head < s.heads; ++head) {
        const int64_t first = start + head * s.ch * 3 * s.x_c;
        head_of.read(static_cast<const T*>(x) + first);
        const int64_t from = ((n * s.heads + head) * s.S + position) * s.ch;
        for (int part = 0; part < 3; ++part) {
          A *a = head_of.part(part), *g = grad.get();
          head_of.copy(parts[part] + from, g, s.ch);
          const A squares = sum_of_squares(a, static_cast<int>(s.ch));
          const A product = dot(a, g, static_cast<int>(s.ch));
          const A factor = normalize_factor(squares, A(s.ch), A(eps));
          const A back = normalize_backward_factor(squares, product, A(s.ch), factor);
          AGF_VECTORISE
          for (int64_t c = 0; c < s.ch; ++c) a[c] = g[c] * factor - a[c] * back;
        }
        head_of.write(static_cast<T*>(grad_x) + first);
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
