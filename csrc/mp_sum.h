// Arithmetic of the magnitude-preserving sum with an optional clip.
#pragma once
#include "scalar.h"

namespace agf::AGF_ISA {

// EDM2 eq. 88: ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2). The two weights come precomputed.
template <class A>
AGF_HD A mp_sum(A a, A b, A weight_a, A weight_b) {
  return a * weight_a + b * weight_b;
}

// Clamp that keeps NaN: a net that diverges must be seen to.
template <class A>
AGF_HD A clip(A x, A limit) {
  x = x > limit ? limit : x;
  return x < -limit ? -limit : x;
}

// 1 where clip passes a gradient.
template <class A>
AGF_HD A clip_slope(A x, A limit) {
  return ((x <= limit) & (x >= -limit)) ? A(1) : A(0);
}

}  // namespace agf::AGF_ISA
