// Winograd's two ways as training's 3x3 convolution takes them, one for each type of images, with
// the adjoints of the transforms, through which the gradient of the weights comes back.
#pragma once
#include "winograd.h"

namespace agf::AGF_ISA {

// Each function transforms one line of values; results lie `stride` apart.
struct WinogradF4 {  // float32
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

struct WinogradF2 {  // bfloat16
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
