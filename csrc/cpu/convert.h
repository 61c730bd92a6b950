// bfloat16 and float16 on the CPU: storage types and conversions that vectorise.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace agf {

enum class Dtype { f32, f64, bf16, f16 };
struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

namespace AGF_ISA {

inline std::uint32_t bits_of(float x) {
  std::uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline float float_of(std::uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

inline float widen(bf16 x) { return float_of(std::uint32_t(x.bits) << 16); }

// Round to nearest, ties to even: add half of the last kept bit, less one if that bit is 0.
inline void narrow(float x, bf16* y) {
  const std::uint32_t u = bits_of(x);
  const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  y->bits = std::uint16_t(nan ? 0x7fc0u : rounded);
}

// The exponent is rebiased by a multiplication with 2^112, which also handles denormals.
inline float widen(f16 x) {
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  const std::uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  const float y = float_of(magnitude << 13) * 0x1p112f;
  return float_of((bits_of(y) | special) | (std::uint32_t(x.bits & 0x8000u) << 16));
}

inline void narrow(float x, f16* y) {
  const std::uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
  const std::uint32_t u = bits_of(x) & 0x7fffffffu;
  const std::uint32_t normal = (u - (112u << 23) + 0xfffu + ((u >> 13) & 1u)) >> 13;
  // A half denormal counts units of 2^-24, which is the last bit of a float in [0.5, 1).
  const std::uint32_t denormal = bits_of(float_of(u) + 0.5f) - 0x3f000000u;
  const std::uint32_t infinity = u > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const std::uint32_t finite = u < (113u << 23) ? denormal : normal;
  y->bits = std::uint16_t(sign | (u >= 0x477ff000u ? infinity : finite));
}

template <class T>
inline void widen(const T* x, float* y, int n) {
  for (int i = 0; i < n; ++i) y[i] = widen(x[i]);
}
template <class T>
inline void narrow(const float* x, T* y, int n) {
  for (int i = 0; i < n; ++i) narrow(x[i], y + i);
}

// Rounding by the processor takes denormals for zero.
#if defined(__AVX512BF16__)
inline void narrow(const float* x, bf16* y, int n) {
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256bh stored = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + i));
    std::memcpy(y + i, &stored, sizeof(stored));
  }
  for (; i < n; ++i) narrow(x[i], y + i);
}
#endif

#if defined(__F16C__)
inline void widen(const f16* x, float* y, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(y + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
  }
  for (; i < n; ++i) y[i] = widen(x[i]);
}
inline void narrow(const float* x, f16* y, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
  }
  for (; i < n; ++i) narrow(x[i], y + i);
}
#elif defined(__aarch64__)
inline void widen(const f16* x, float* y, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(&x[i].bits));
    vst1q_f32(y + i, vcvt_f32_f16(vget_low_f16(halves)));
    vst1q_f32(y + i + 4, vcvt_high_f32_f16(halves));
  }
  for (; i < n; ++i) y[i] = widen(x[i]);
}
inline void narrow(const float* x, f16* y, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const float16x4_t low = vcvt_f16_f32(vld1q_f32(x + i));
    vst1q_u16(&y[i].bits, vreinterpretq_u16_f16(vcvt_high_f16_f32(low, vld1q_f32(x + i + 4))));
  }
  for (; i < n; ++i) narrow(x[i], y + i);
}
#endif

}  // namespace AGF_ISA
}  // namespace agf
