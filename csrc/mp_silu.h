// Arithmetic of mp_silu and of the embedding modulation before it.
#pragma once
#include "scalar.h"

namespace agf::AGF_ISA {

constexpr double kSiluRms = 0.596;  // the root mean square of silu(x) for x ~ N(0, 1)

// EDM2 eq. 81: silu(x) over its root mean square.
template <class A>
AGF_HD A mp_silu(A x) {
  return x * sigmoid(x) * A(1 / kSiluRms);
}

// d/dx x s(x) = s (1 + x (1 - s)), s the sigmoid.
template <class A>
AGF_HD A mp_silu_slope(A x) {
  const A s = sigmoid(x);
  return s * (A(1) + x * (A(1) - s)) * A(1 / kSiluRms);
}

}  // namespace agf::AGF_ISA
