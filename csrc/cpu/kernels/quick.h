// The exponential and mp_silu for results that are then rounded to 8 or 16 bits: half the
// instructions of the exact ones in scalar.h, which bound the time of an entry and of attention.
#pragma once
#include "cpu/chunks.h"
#include "mp_silu.h"

namespace agf::AGF_ISA {

// exp(x) for |x| <= 87, within 4e-6 of it. 2^t = 2^n 2^f with n = round(t): n is added to the
// exponent of a polynomial in f, |f| <= 1/2, that meets 2^f at the five Chebyshev nodes.
inline float quick_exp(float x) {
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

// EDM2 eq. 81, as mp_silu; a NaN stays one.
inline float quick_mp_silu(float x) {
  const float bounded = x < -80.0f ? -80.0f : x > 80.0f ? 80.0f : x;
  return x * (1 / 0.596f) / (1.0f + quick_exp(-bounded));
}

// mp_silu and its slope for values of type T in memory.
template <class T>
inline Compute<T> mp_silu_for(Compute<T> x) {
  if constexpr (kInPlace<T>) {
    return mp_silu(x);
  } else {
    x = x < -80.0f ? -80.0f : x;  // below, the result is 0
    return quick_mp_silu(x);
  }
}

template <class T>
inline Compute<T> mp_silu_slope_for(Compute<T> x) {
  if constexpr (kInPlace<T>) {
    return mp_silu_slope(x);
  } else {
    const float bounded = x < -80.0f ? -80.0f : x > 80.0f ? 80.0f : x;
    const float s = 1.0f / (1.0f + quick_exp(-bounded));
    return s * (1.0f + bounded * (1.0f - s)) * (1 / 0.596f);
  }
}

}  // namespace agf::AGF_ISA
