// Arithmetic of the magnitude-preserving Fourier features.
#pragma once
#include "scalar.h"

namespace agf::AGF_ISA {

AGF_HD float cosine(float x) { return cosf(x); }
AGF_HD double cosine(double x) { return cos(x); }

// The product is rounded before the sum, as in every other implementation: at f x ~ 1e2 a fused
// multiply-add would show.
#ifdef __CUDA_ARCH__
AGF_HD float rounded_product(float a, float b) { return __fmul_rn(a, b); }
AGF_HD double rounded_product(double a, double b) { return __dmul_rn(a, b); }
#else
template <class A>
AGF_HD A rounded_product(A a, A b) {
  const volatile A product = a * b;
  return product;
}
#endif

// EDM2 eq. 75: sqrt(2) cos(x f + phi).
template <class A>
AGF_HD A mp_fourier(A x, A frequency, A phase) {
  return cosine(rounded_product(x, frequency) + phase) * A(1.4142135623730951);
}

}  // namespace agf::AGF_ISA
