// Arithmetic of the guided Heun step: preconditioning, guidance and one half of the step.
#pragma once
#include "scalar.h"

namespace agf::AGF_ISA {

// The scalars of one half step. EDM table 1: c_skip = s^2 / (sigma^2 + s^2) and
// c_out = sigma s / sqrt(sigma^2 + s^2), s = sigma_data; 0 and 1 where the nets return D itself.
template <class A>
struct GuidedScalars {
  A c_skip, c_out, guidance, inverse_sigma, step;

  GuidedScalars() = default;
  AGF_HD GuidedScalars(double sigma, double delta, double w, double sigma_data, bool raw) {
    const double total = sigma * sigma + sigma_data * sigma_data;
    c_skip = raw ? A(sigma_data * sigma_data / total) : A(0);
    c_out = raw ? A(sigma * sigma_data / square_root(total)) : A(1);
    guidance = A(w);
    inverse_sigma = A(1 / sigma);
    step = A(delta);
  }
};

// Autoguidance: D = D0 + w (D1 - D0), D_i = c_skip x + c_out raw_i.
template <class A>
AGF_HD A guided_denoised(A x, A raw, A guide_raw, const GuidedScalars<A>& s) {
  return s.c_skip * x + s.c_out * (guide_raw + s.guidance * (raw - guide_raw));
}

// EDM alg. 1: the slope dx/dsigma = (x - D) / sigma.
template <class A>
AGF_HD A slope(A x, A denoised, const GuidedScalars<A>& s) {
  return (x - denoised) * s.inverse_sigma;
}

// EDM alg. 1, the two halves of a step: along one slope, and along the mean of two.
template <class A>
AGF_HD A euler_step(A x, A slope, const GuidedScalars<A>& s) {
  return x + s.step * slope;
}
template <class A>
AGF_HD A trapezoidal_step(A x, A slope, A slope_next, const GuidedScalars<A>& s) {
  return x + s.step * A(0.5) * (slope + slope_next);
}

}  // namespace agf::AGF_ISA
