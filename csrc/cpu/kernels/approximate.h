// The exponential and mp_silu for results that are then rounded to 8 or 16 bits: half the
// instructions of the exact ones in scalar.h, which bound the time of block prologues and of
// attention.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "cpu/chunks.h"
#include "mp_silu.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace agf::AGF_ISA {

// exp(x) for |x| <= 87, within 4e-6 of it. 2^t = 2^n 2^f with n = round(t): n is added to the
// exponent of a polynomial in f, |f| <= 1/2, that meets 2^f at the five Chebyshev nodes.
inline float approximate_exp(float x) {
  const float t = x * 1.44269504f;
  const float shifted = t + 12582912.0f;  // 1.5 * 2^23: the last bits become n
  const float f = t - (shifted - 12582912.0f);
  float p = 9.66636852e-03f;
  p = p * f + 5.59219758e-02f;
  p = p * f + 2.40223490e-01f;
  p = p * f + 6.93121045e-01f;
  p = p * f + 1.0f;
  return float_of(bits_of(p) + (bits_of(shifted) << 23));
}

inline float approximate_sigmoid(float x) {
  const float bounded = x < -80.0f ? -80.0f : x > 80.0f ? 80.0f : x;
  return 1.0f / (1.0f + approximate_exp(-bounded));
}

// The scale of mp_silu, divided in float32: one unit in the last place below that of the exact one.
constexpr float kApproximateScale = 1 / static_cast<float>(kSiluRms);

// EDM2 eq. 81, as mp_silu, of `count` values, a multiple of 16, in place; a NaN stays one.
inline void approximate_mp_silu(float* values, std::int64_t count) {
#if defined(__AVX512F__)
  // As approximate_sigmoid, but for the division: a reciprocal within 6e-5, in place of ten cycles.
  const __m512 bound = _mm512_set1_ps(80.0f), shift = _mm512_set1_ps(12582912.0f);
  for (std::int64_t j = 0; j < count; j += 16) {
    const __m512 x = _mm512_loadu_ps(values + j);
    const __m512 bounded = _mm512_min_ps(bound, _mm512_max_ps(-bound, x));
    const __m512 t = bounded * _mm512_set1_ps(-1.44269504f);
    const __m512 shifted = t + shift;
    const __m512 f = t - (shifted - shift);
    __m512 p = _mm512_set1_ps(9.66636852e-03f);
    for (const float c : {5.59219758e-02f, 2.40223490e-01f, 6.93121045e-01f, 1.0f}) {
      p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
    }
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    const __m512 e = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), power));
    const __m512 inverse = _mm512_rcp14_ps(_mm512_set1_ps(1.0f) + e);
    _mm512_storeu_ps(values + j, x * _mm512_set1_ps(kApproximateScale) * inverse);
  }
#else
  AGF_VECTORISE
  for (std::int64_t j = 0; j < count; ++j)
    values[j] *= kApproximateScale * approximate_sigmoid(values[j]);
#endif
}

// mp_silu and its slope for values of type T in memory.
template <class T>
inline Compute<T> mp_silu_for(Compute<T> x) {
  if constexpr (kInPlace<T>) {
    return mp_silu(x);
  } else {
    x = x < -80.0f ? -80.0f : x;  // below, the result is 0
    return x * kApproximateScale * approximate_sigmoid(x);
  }
}

template <class T>
inline Compute<T> mp_silu_slope_for(Compute<T> x) {
  if constexpr (kInPlace<T>) {
    return mp_silu_slope(x);
  } else {
    x = x < -80.0f ? -80.0f : x;  // below, the result is 0
    const float s = approximate_sigmoid(x);
    return s * (1.0f + x * (1.0f - s)) * kApproximateScale;
  }
}

}  // namespace agf::AGF_ISA
