// Arithmetic of the normalisation to unit magnitude.
#pragma once
#include "scalar.h"

namespace agf::AGF_ISA {

constexpr float kEps = 1e-4f;  // eps of the networks' normalisations

// EDM2 eq. 30 and 66: x / (eps + |x| / sqrt(n)) over n values. This is the factor on x.
template <class A>
AGF_HD A normalize_factor(A sum_of_squares, A count, A eps) {
  return A(1) / (eps + square_root(sum_of_squares / count));
}

// Gradient of y = x f, f the factor above: dx = f g - x c with c = f^2 (g.x) / (|x| sqrt(n)).
// At |x| = 0 the norm has no gradient, and c is 0 (the subgradient that autograd takes too).
template <class A>
AGF_HD A normalize_backward_factor(A sum_of_squares, A dot, A count, A factor) {
  return sum_of_squares > A(0) ? factor * factor * dot / square_root(sum_of_squares * count) : A(0);
}

}  // namespace agf::AGF_ISA
