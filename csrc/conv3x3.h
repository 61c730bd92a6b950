// The adjoints of Winograd's transforms, through which the gradient of the weights comes back.
#pragma once
#include "winograd.h"

namespace agf::AGF_ISA {

// w = G^T u: the adjoint of winograd_weights.
template <class V>
AGF_HD void winograd_weights_adjoint(V u0, V u1, V u2, V u3, V u4, V u5, V* w, int stride) {
  const V sum_a = u1 + u2, difference_a = u1 - u2;
  const V sum_b = u3 + u4, difference_b = u3 - u4;
  w[0] = u0 + sum_a + sum_b;
  w[stride] = kPointA * difference_a + kPointB * difference_b;
  w[2 * stride] = kA2 * sum_a + kB2 * sum_b + u5;
}

// m = A y: the adjoint of winograd_output.
template <class V>
AGF_HD void winograd_output_adjoint(V y0, V y1, V y2, V y3, V* m, int stride) {
  const V even_a = kScaleA * (y0 + kA2 * y2), odd_a = kScaleA * kPointA * (y1 + kA2 * y3);
  const V even_b = kScaleB * (y0 + kB2 * y2), odd_b = kScaleB * kPointB * (y1 + kB2 * y3);
  m[0] = y0;
  m[stride] = even_a + odd_a;
  m[2 * stride] = even_a - odd_a;
  m[3 * stride] = even_b + odd_b;
  m[4 * stride] = even_b - odd_b;
  m[5 * stride] = y3;
}

}  // namespace agf::AGF_ISA
