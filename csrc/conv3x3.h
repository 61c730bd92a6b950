// The transforms of Winograd's F(4x4, 3x3) that training needs besides those of winograd.h: that
// of the weights, and the adjoints through which the gradient of the weights comes back.
#pragma once
#include "winograd.h"

namespace agf::AGF_ISA {

// 1 / product of (point - other points): 1 at 0, since a b = 1; the same at a point and its mirror.
constexpr float kAtA = 1 / (2 * kA2 * (kA2 - kB2)), kAtB = 1 / (2 * kB2 * (kB2 - kA2));

// u = G w for one line of three: the values of the polynomial w at the six points, scaled.
template <class V>
AGF_HD void winograd_weight(V w0, V w1, V w2, V* u, int stride) {
  const V even_a = kAtA * (w0 + kA2 * w2), odd_a = kAtA * kPointA * w1;
  const V even_b = kAtB * (w0 + kB2 * w2), odd_b = kAtB * kPointB * w1;
  u[0] = w0;
  u[stride] = even_a + odd_a;
  u[2 * stride] = even_a - odd_a;
  u[3 * stride] = even_b + odd_b;
  u[4 * stride] = even_b - odd_b;
  u[5 * stride] = w2;
}

// w = G^T u: the adjoint of winograd_weight.
template <class V>
AGF_HD void winograd_weight_adjoint(V u0, V u1, V u2, V u3, V u4, V u5, V* w, int stride) {
  const V sum_a = kAtA * (u1 + u2), difference_a = kAtA * (u1 - u2);
  const V sum_b = kAtB * (u3 + u4), difference_b = kAtB * (u3 - u4);
  w[0] = u0 + sum_a + sum_b;
  w[stride] = kPointA * difference_a + kPointB * difference_b;
  w[2 * stride] = kA2 * sum_a + kB2 * sum_b + u5;
}

// m = A y: the adjoint of winograd_output.
template <class V>
AGF_HD void winograd_output_adjoint(V y0, V y1, V y2, V y3, V* m, int stride) {
  const V even_a = y0 + kA2 * y2, odd_a = kPointA * (y1 + kA2 * y3);
  const V even_b = y0 + kB2 * y2, odd_b = kPointB * (y1 + kB2 * y3);
  m[0] = y0;
  m[stride] = even_a + odd_a;
  m[2 * stride] = even_a - odd_a;
  m[3 * stride] = even_b + odd_b;
  m[4 * stride] = even_b - odd_b;
  m[5 * stride] = y3;
}

}  // namespace agf::AGF_ISA
