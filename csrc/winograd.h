// Arithmetic of Winograd's convolutions: F(4x4, 3x3), 16 results from 36 products instead of 144,
// and F(2x2, 3x3), 4 results from 16 products instead of 36, which bears bfloat16 better.
//
// The six points of the first are 0, +-2/3, +-3/2 and infinity. The usual 0, +-1, +-2 lose four
// times more of float32: over 64 channels of unit variance the largest error is 5e-6 here, 3e-5
// there, and 3e-6 in a plain sum.
#pragma once
#include "scalar.h"

namespace agf::AGF_ISA {

constexpr float kPointA = 2.0f / 3.0f, kPointB = 3.0f / 2.0f;  // a b = 1 spares a product
constexpr float kA2 = kPointA * kPointA, kB2 = kPointB * kPointB;
// Lagrange's denominators, the products of (p - q) over all other points q; 1 for 0, as a b = 1.
constexpr float kScaleA = 1 / (2 * kA2 * (kA2 - kB2)), kScaleB = 1 / (2 * kB2 * (kB2 - kA2));

// u = G w for one line of three: the values of w0 + w1 x + w2 x^2 at the points.
template <class V>
AGF_HD void winograd_weights(V w0, V w1, V w2, V* u, int stride) {
  const V even_a = w0 + kA2 * w2, even_b = w0 + kB2 * w2;
  u[0] = w0;
  u[stride] = even_a + kPointA * w1;
  u[2 * stride] = even_a - kPointA * w1;
  u[3 * stride] = even_b + kPointB * w1;
  u[4 * stride] = even_b - kPointB * w1;
  u[5 * stride] = w2;
}

// t = B^T d for one line of six, coefficients of the products of (x - p) over all other points p.
template <class V>
AGF_HD void winograd_input(V d0, V d1, V d2, V d3, V d4, V d5, V* t, int stride) {
  const V even_a = d4 - kB2 * d2, odd_a = kPointA * (d3 - kB2 * d1);
  const V even_b = d4 - kA2 * d2, odd_b = kPointB * (d3 - kA2 * d1);
  t[0] = d0 - (kA2 + kB2) * d2 + d4;
  t[stride] = even_a + odd_a;
  t[2 * stride] = even_a - odd_a;
  t[3 * stride] = even_b + odd_b;
  t[4 * stride] = even_b - odd_b;
  t[5 * stride] = d5 - (kA2 + kB2) * d3 + d1;
}

// y = A^T m for one line of six: the four coefficients of the product, from its values; with the
// denominators, which so cost the weights nothing.
template <class V>
AGF_HD void winograd_output(V m0, V m1, V m2, V m3, V m4, V m5, V* y, int stride) {
  const V sum_a = m1 + m2, difference_a = m1 - m2;
  const V sum_b = m3 + m4, difference_b = m3 - m4;
  y[0] = m0 + kScaleA * sum_a + kScaleB * sum_b;
  y[stride] = kScaleA * kPointA * difference_a + kScaleB * kPointB * difference_b;
  y[2 * stride] = kScaleA * kA2 * sum_a + kScaleB * kB2 * sum_b;
  y[3 * stride] =
      kScaleA * kA2 * kPointA * difference_a + kScaleB * kB2 * kPointB * difference_b + m5;
}

// F(2x2, 3x3), whose points are 0, 1, -1 and infinity: but for the halves of its weights it only
// adds.
template <class V>
AGF_HD void winograd2_weights(V w0, V w1, V w2, V* u, int stride) {
  const V even = 0.5f * (w0 + w2), odd = 0.5f * w1;
  u[0] = -w0;
  u[stride] = even + odd;
  u[2 * stride] = even - odd;
  u[3 * stride] = w2;
}

template <class V>
AGF_HD void winograd2_input(V d0, V d1, V d2, V d3, V* t, int stride) {
  t[0] = d2 - d0;
  t[stride] = d1 + d2;
  t[2 * stride] = d2 - d1;
  t[3 * stride] = d3 - d1;
}

template <class V>
AGF_HD void winograd2_output(V m0, V m1, V m2, V m3, V* y, int stride) {
  y[0] = m0 + m1 + m2;
  y[stride] = m1 - m2 + m3;
}

// The two ways under common names, with the adjoints of their transforms, through which the
// gradient of the weights comes back. Each function transforms one line of values; results lie
// `stride` apart.
struct WinogradF4 {
  static constexpr int kTile = 4, kWindow = 6;

  template <class V>
  static void weights(const V* w, V* u, int stride) {
    winograd_weights(w[0], w[1], w[2], u, stride);
  }
  template <class V>
  static void input(const V* d, V* t, int stride) {
    winograd_input(d[0], d[1], d[2], d[3], d[4], d[5], t, stride);
  }
  template <class V>
  static void output(const V* m, V* y, int stride) {
    winograd_output(m[0], m[1], m[2], m[3], m[4], m[5], y, stride);
  }
  template <class V>
  static void weights_adjoint(const V* u, V* w, int stride) {
    const V sum_a = u[1] + u[2], difference_a = u[1] - u[2];
    const V sum_b = u[3] + u[4], difference_b = u[3] - u[4];
    w[0] = u[0] + sum_a + sum_b;
    w[stride] = kPointA * difference_a + kPointB * difference_b;
    w[2 * stride] = kA2 * sum_a + kB2 * sum_b + u[5];
  }
  template <class V>
  static void output_adjoint(const V* y, V* m, int stride) {
    const V even_a = kScaleA * (y[0] + kA2 * y[2]), odd_a = kScaleA * kPointA * (y[1] + kA2 * y[3]);
    const V even_b = kScaleB * (y[0] + kB2 * y[2]), odd_b = kScaleB * kPointB * (y[1] + kB2 * y[3]);
    m[0] = y[0];
    m[stride] = even_a + odd_a;
    m[2 * stride] = even_a - odd_a;
    m[3 * stride] = even_b + odd_b;
    m[4 * stride] = even_b - odd_b;
    m[5 * stride] = y[3];
  }
};

struct WinogradF2 {
  static constexpr int kTile = 2, kWindow = 4;

  template <class V>
  static void weights(const V* w, V* u, int stride) {
    winograd2_weights(w[0], w[1], w[2], u, stride);
  }
  template <class V>
  static void input(const V* d, V* t, int stride) {
    winograd2_input(d[0], d[1], d[2], d[3], t, stride);
  }
  template <class V>
  static void output(const V* m, V* y, int stride) {
    winograd2_output(m[0], m[1], m[2], m[3], y, stride);
  }
  template <class V>
  static void weights_adjoint(const V* u, V* w, int stride) {
    const V even = 0.5f * (u[1] + u[2]);
    w[0] = even - u[0];
    w[stride] = 0.5f * (u[1] - u[2]);
    w[2 * stride] = even + u[3];
  }
  template <class V>
  static void output_adjoint(const V* y, V* m, int stride) {
    m[0] = y[0];
    m[stride] = y[0] + y[1];
    m[2 * stride] = y[0] - y[1];
    m[3 * stride] = y[1];
  }
};

}  // namespace agf::AGF_ISA
