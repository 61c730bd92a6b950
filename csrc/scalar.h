// Scalar functions shared by host and device, written so that a loop over them vectorises.
// nvcc, NVRTC (which has the mathematical functions built in) and every CPU variant compile the
// same lines.
#pragma once

#ifndef __CUDACC_RTC__
#include <math.h>
#endif

#ifdef __CUDACC__
#define AGF_HD __host__ __device__ inline
#else
#define AGF_HD inline
#endif

// Each CPU variant is compiled with other flags and therefore needs functions of its own: were
// they shared, the linker would keep one copy, possibly one that this processor cannot run.
#ifndef AGF_ISA
#define AGF_ISA common
#endif

namespace agf::AGF_ISA {

#ifndef __CUDACC_RTC__
// 2^n for -126 <= n <= 127.
AGF_HD float power_of_two(int n) {
  const int bits = (n + 127) << 23;
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}
#endif

AGF_HD double exp(double x) { return ::exp(x); }

// Within 2 ulp of exp over the whole range, infinities and denormals included.
// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2)/2; the Taylor series to r^7 leaves
// r^8/8! < 6e-9 of relative error, a tenth of an ulp.
AGF_HD float exp(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  x = x < -104.0f ? -104.0f : x;                        // below: 0; a NaN passes both selects
  x = x > 104.0f ? 104.0f : x;                          // above: infinity
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const float n = shifted - 12582912.0f;
  float r = x - n * 0.693145752f;  // ln 2 in two parts: the first times n is exact
  r = r - n * 1.42860677e-6f;
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^n in two factors, because n runs from -150 to 150.
  const int whole = (int)n;
  const int half = whole >> 1;
  return p * power_of_two(half) * power_of_two(whole - half);
#endif
}

AGF_HD float square_root(float x) { return sqrtf(x); }
AGF_HD double square_root(double x) { return sqrt(x); }

template <class A>
AGF_HD A sigmoid(A x) {
  return A(1) / (A(1) + exp(-x));
}

}  // namespace agf::AGF_ISA
