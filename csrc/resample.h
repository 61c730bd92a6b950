// Arithmetic of resampling by two.
#pragma once
#include "scalar.h"

namespace agf::AGF_ISA {

// EDM2's filter [1, 1] halves an image by the mean of each 2x2 pixels.
template <class A>
AGF_HD A mean_of_four(A first, A right, A below, A across) {
  return (first + right + below + across) * A(0.25);
}

}  // namespace agf::AGF_ISA
