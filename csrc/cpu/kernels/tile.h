// The inner loop of every matrix product of the engine: kPixels pixels times up to kMaxPanels
// panels of 16 output channels, accumulated in registers over input channels and taps.
//
// A step takes four bytes of each pixel (one float, two bf16 or four u8), which are multiplied with
// the matching 64 bytes of weights. Per step that is kPixels broadcasts and one or two vector
// loads for kPixels times as many fused multiply-adds: the loads stay below the two a cycle that
// the processor has, and the sums are enough to cover the latency of the adds.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/convert.h"
#include "engine/plan.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace agf::AGF_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kPixels = 8, kMaxPanels = 3;  // 24 of 32 registers hold sums
#elif defined(__AVX2__)
constexpr int kWidth = 8, kPixels = 4, kMaxPanels = 1;  // 8 of 16
#elif defined(__aarch64__)
constexpr int kWidth = 4, kPixels = 4, kMaxPanels = 1;  // 16 of 32
#else
constexpr int kWidth = 4, kPixels = 2, kMaxPanels = 1;
#endif
constexpr int kVectors = kLanes / kWidth;  // of a panel

using Floats = float __attribute__((vector_size(kWidth * 4), may_alias));
using Ints = std::int32_t __attribute__((vector_size(kWidth * 4), may_alias));

template <class T>
inline T load_as(const void* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// Loads kWidth stored values as floats, and stores them.
template <Storage storage>
inline Floats load_floats(const char* p) {
  if constexpr (storage == Storage::f32) {
    return load_as<Floats>(p);
  } else {
    static_assert(storage == Storage::bf16);
    using Halves = std::uint16_t __attribute__((vector_size(kWidth * 2)));
    return (Floats)(__builtin_convertvector(load_as<Halves>(p), Ints) << 16);
  }
}

template <Storage storage>
inline void store_floats(Floats x, char* to) {
  if constexpr (storage == Storage::f32) {
    std::memcpy(to, &x, sizeof(x));
  } else {
    static_assert(storage == Storage::bf16);
    float values[kWidth];
    std::memcpy(values, &x, sizeof(x));
    narrow(values, reinterpret_cast<bf16*>(to), kWidth);
  }
}

// Four bytes for each lane: a float, or a bf16 of `first` and one of `second`.
template <Storage storage>
inline Ints pack_stored(Floats first, [[maybe_unused]] Floats second) {
  if constexpr (storage == Storage::f32) {
    return (Ints)first;
  } else {
    static_assert(storage == Storage::bf16);
#if defined(__AVX512BF16__)
    using Halves = std::uint16_t __attribute__((vector_size(64)));
    constexpr Halves pairs = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                              8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i stored = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (Ints)_mm512_permutexvar_epi16((__m512i)pairs, stored);
#else
    Ints stored;
    char* to = reinterpret_cast<char*>(&stored);
    float a[kWidth], b[kWidth];
    std::memcpy(a, &first, sizeof(a));
    std::memcpy(b, &second, sizeof(b));
    for (int i = 0; i < kWidth; ++i) {
      bf16 pair[2];
      narrow(a[i], pair);
      narrow(b[i], pair + 1);
      std::memcpy(to + 4 * i, pair, 4);
    }
    return stored;
#endif
  }
}

// sum + x . w for each lane, x four bytes of a pixel and w the lane's four bytes of weights.
template <Storage>
struct Dot;

template <>
struct Dot<Storage::f32> {
  using Sum = Floats;
  static Sum add(Sum sum, const char* x, Ints w) { return sum + load_as<float>(x) * (Floats)w; }
  static Floats value(Sum sum) { return sum; }
};

template <>
struct Dot<Storage::bf16> {
  using Sum = Floats;
  static Sum add(Sum sum, const char* x, Ints w) {
    const std::int32_t pair = load_as<std::int32_t>(x);
#if defined(__AVX512BF16__)
    return (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)w);
#else
    // The upper half of a float is its bf16.
    const std::int32_t low = pair << 16, high = pair & ~0xffff;
    const Ints w_low = w << 16, w_high = w & ~0xffff;
    sum += load_as<float>(&low) * (Floats)w_low;
    return sum + load_as<float>(&high) * (Floats)w_high;
#endif
  }
  static Floats value(Sum sum) { return sum; }
};

template <>
struct Dot<Storage::u8> {
  using Sum = Ints;
  static Sum add(Sum sum, const char* x, Ints w) {
#if defined(__AVX512VNNI__)
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(load_as<std::int32_t>(x)),
                                    (__m512i)w);
#else
    for (int i = 0; i < 4; ++i) {
      sum +=
          static_cast<std::int32_t>(static_cast<unsigned char>(x[i])) * ((w << (24 - 8 * i)) >> 24);
    }
    return sum;
#endif
  }
  static Floats value(Sum sum) { return __builtin_convertvector(sum, Floats); }
};

// Sums [kPixels][panels * 16] in memory, L1.
struct Tile {
  alignas(64) float sums[kPixels * kMaxPanels * kLanes];
};

// Rows of a matrix, `stride` bytes apart, in place of pointers to pixels.
struct StridedRows {
  const char* first;
  int64_t stride;
  const char* operator[](int row) const { return first + row * stride; }
};

// The byte offsets of a convolution's taps from each pixel's address; and of a matrix product's
// one.
struct Taps {
  const int64_t* offsets;
  int64_t count;
};
struct OneTap {
  static constexpr int64_t offsets[1] = {0}, count = 1;
};

// out [rows][panels * 16] = or += pixels x weights, for pixels[0] to pixels[rows - 1]. Each tap has
// `tap_bytes` of each pixel; the weights of consecutive steps lie
// `step` bytes apart, those of consecutive panels `panel`, and a pixel's own steps `advance`.
template <Storage storage, int panels, int advance, int rows, bool add, class Pixels, class Offsets>
__attribute__((noinline)) void multiply(Pixels pixels, Offsets taps, int64_t tap_bytes,
                                        const char* weights, int64_t step, int64_t panel,
                                        float* out) {
  using D = Dot<storage>;
  constexpr int vectors = panels * kVectors;
  // Unrolled, all of it: a loop over the sums, to clear or to store them, would put them in memory.
  typename D::Sum sums[rows][vectors];
  const char* base[rows];
#pragma GCC unroll 16
  for (int p = 0; p < rows; ++p) {
    base[p] = pixels[p];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) sums[p][v] = typename D::Sum{};
  }
  for (int64_t t = 0; t < taps.count; ++t) {
    const int64_t begin = taps.offsets[t], end = begin + tap_bytes;
    for (int64_t i = begin; i < end; i += advance) {
      Ints w[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        w[v] = *reinterpret_cast<const Ints*>(weights + v / kVectors * panel +
                                              v % kVectors * (kWidth * 4));
      }
#pragma GCC unroll 16
      for (int p = 0; p < rows; ++p) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) sums[p][v] = D::add(sums[p][v], base[p] + i, w[v]);
      }
      weights += step;
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < rows; ++p) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      auto* to = reinterpret_cast<Floats*>(out + (p * vectors + v) * kWidth);
      *to = add ? *to + D::value(sums[p][v]) : D::value(sums[p][v]);
    }
  }
}

template <Storage storage, int advance = 4, int rows = kPixels, bool add = false, class Pixels,
          class Offsets>
inline void multiply(int panels, Pixels pixels, Offsets taps, int64_t tap_bytes,
                     const char* weights, int64_t step, int64_t panel, float* out) {
  const auto run = [&](auto count) {
    multiply<storage, decltype(count)::value, advance, rows, add>(pixels, taps, tap_bytes, weights,
                                                                  step, panel, out);
  };
  if constexpr (kMaxPanels == 3) {
    if (panels == 3) return run(std::integral_constant<int, 3>{});
    if (panels == 2) return run(std::integral_constant<int, 2>{});
  }
  run(std::integral_constant<int, 1>{});
}

// Splits the work over output channels where weights are the larger part of what is read, so that
// each thread reads only its own, else over pixels; either only if it keeps all threads busy.
inline bool split_channels(const Convolve& c, const ExecutionContext& f, int64_t blocks,
                           int64_t panels) {
  if (f.threads == 1) return false;
  const auto longest = [&](int64_t count) {
    return static_cast<double>((count + f.threads - 1) / f.threads * f.threads) / count;
  };
  const int64_t weight_bytes = c.taps * c.in_channels * panels * kLanes;
  const int64_t input_bytes = f.images * c.in.height * c.in.width * c.in.channels;
  const double preference = weight_bytes > input_bytes ? 1.1 : 0.9;
  return longest(panels) < preference * longest(blocks);
}

// How many panels the next product takes of those that are left: threes, or twos where the last
// would stand alone.
inline int next_panels(int64_t left) {
  if (kMaxPanels == 1) return 1;
  return left == 4 || left == 2 ? 2 : left == 1 ? 1 : 3;
}

}  // namespace agf::AGF_ISA
