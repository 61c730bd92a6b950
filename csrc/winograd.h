// Winograd's 3x3 convolutions F(m x m, 3x3): m^2 results of a tile from (m + 2)^2 products at as
// many points instead of 9 m^2, Y = A^T [(G w G^T) (B^T d B)] A for weights w and a window d of the
// image. F(4x4) takes 36 products for 144, F(2x2) 16 for 36 and bears bfloat16 better.
//
// Each is a struct with its sizes and its transforms, the only place where these stand; a transform
// is a struct too, whose `line` turns one line of kFrom values into kTo that lie `stride` apart.
// Adjoints are what the gradient of the weights comes back through.
#pragma once
#include "scalar.h"

namespace agf {

// Bytes between what the matrix of one point takes and the next one: a cache line, since with a
// power of two from matrix to matrix all that a transform reads or writes would fall into one set
// of the L1 cache.
constexpr int kPointPadding = 64;

namespace AGF_ISA {

// The type of the constants: double for double, else float, also for a vector of floats.
template <class V>
struct ConstantsOf {
  using type = float;
};
template <>
struct ConstantsOf<double> {
  using type = double;
};

// The six points are 0, +-a, +-b and infinity with a = 2/3, b = 3/2. The usual 0, +-1, +-2 lose
// four times more of float32: over 64 channels of unit variance the largest error is 5e-6 here,
// 3e-5 there, and 3e-6 in a plain sum.
struct WinogradF4 {
  static constexpr int kTile = 4, kWindow = 6;

  template <class S>
  struct Constants {
    static constexpr S a = S(2) / S(3), b = S(3) / S(2);  // a b = 1 spares a product
    static constexpr S a2 = a * a, b2 = b * b;
    // Lagrange's denominators, the products of (p - q) over all other points q; 1 for 0, as a b
    // = 1.
    static constexpr S scale_a = 1 / (2 * a2 * (a2 - b2)), scale_b = 1 / (2 * b2 * (b2 - a2));
  };
  template <class V>
  using Of = Constants<typename ConstantsOf<V>::type>;

  // u = G w: the values of w0 + w1 x + w2 x^2 at the points.
  struct Weights {
    static constexpr int kFrom = 3, kTo = 6;
    template <class V>
    static void line(const V* w, V* u, int stride) {
      using C = Of<V>;
      const V even_a = w[0] + C::a2 * w[2], even_b = w[0] + C::b2 * w[2];
      u[0] = w[0];
      u[stride] = even_a + C::a * w[1];
      u[2 * stride] = even_a - C::a * w[1];
      u[3 * stride] = even_b + C::b * w[1];
      u[4 * stride] = even_b - C::b * w[1];
      u[5 * stride] = w[2];
    }
  };

  // t = B^T d, coefficients of the products of (x - p) over all other points p.
  struct Input {
    static constexpr int kFrom = 6, kTo = 6;
    template <class V>
    static void line(const V* d, V* t, int stride) {
      using C = Of<V>;
      const V even_a = d[4] - C::b2 * d[2], odd_a = C::a * (d[3] - C::b2 * d[1]);
      const V even_b = d[4] - C::a2 * d[2], odd_b = C::b * (d[3] - C::a2 * d[1]);
      t[0] = d[0] - (C::a2 + C::b2) * d[2] + d[4];
      t[stride] = even_a + odd_a;
      t[2 * stride] = even_a - odd_a;
      t[3 * stride] = even_b + odd_b;
      t[4 * stride] = even_b - odd_b;
      t[5 * stride] = d[5] - (C::a2 + C::b2) * d[3] + d[1];
    }
  };

  // y = A^T m: the four coefficients of the product, from its values; with the denominators, which
  // so cost the weights nothing.
  struct Output {
    static constexpr int kFrom = 6, kTo = 4;
    template <class V>
    static void line(const V* m, V* y, int stride) {
      using C = Of<V>;
      const V sum_a = m[1] + m[2], difference_a = m[1] - m[2];
      const V sum_b = m[3] + m[4], difference_b = m[3] - m[4];
      y[0] = m[0] + C::scale_a * sum_a + C::scale_b * sum_b;
      y[stride] = C::scale_a * C::a * difference_a + C::scale_b * C::b * difference_b;
      y[2 * stride] = C::scale_a * C::a2 * sum_a + C::scale_b * C::b2 * sum_b;
      y[3 * stride] = C::scale_a * C::a2 * C::a * difference_a +
                      C::scale_b * C::b2 * C::b * difference_b + m[5];
    }
  };

  struct WeightsAdjoint {
    static constexpr int kFrom = 6, kTo = 3;
    template <class V>
    static void line(const V* u, V* w, int stride) {
      using C = Of<V>;
      const V sum_a = u[1] + u[2], difference_a = u[1] - u[2];
      const V sum_b = u[3] + u[4], difference_b = u[3] - u[4];
      w[0] = u[0] + sum_a + sum_b;
      w[stride] = C::a * difference_a + C::b * difference_b;
      w[2 * stride] = C::a2 * sum_a + C::b2 * sum_b + u[5];
    }
  };

  struct OutputAdjoint {
    static constexpr int kFrom = 4, kTo = 6;
    template <class V>
    static void line(const V* y, V* m, int stride) {
      using C = Of<V>;
      const V even_a = C::scale_a * (y[0] + C::a2 * y[2]),
              odd_a = C::scale_a * C::a * (y[1] + C::a2 * y[3]);
      const V even_b = C::scale_b * (y[0] + C::b2 * y[2]),
              odd_b = C::scale_b * C::b * (y[1] + C::b2 * y[3]);
      m[0] = y[0];
      m[stride] = even_a + odd_a;
      m[2 * stride] = even_a - odd_a;
      m[3 * stride] = even_b + odd_b;
      m[4 * stride] = even_b - odd_b;
      m[5 * stride] = y[3];
    }
  };
};

// The four points are 0, 1, -1 and infinity: but for the halves of its weights, which are
// Lagrange's denominators, this one only adds.
struct WinogradF2 {
  static constexpr int kTile = 2, kWindow = 4;

  struct Weights {
    static constexpr int kFrom = 3, kTo = 4;
    template <class V>
    static void line(const V* w, V* u, int stride) {
      const V even = 0.5f * (w[0] + w[2]), odd = 0.5f * w[1];
      u[0] = -w[0];
      u[stride] = even + odd;
      u[2 * stride] = even - odd;
      u[3 * stride] = w[2];
    }
  };

  struct Input {
    static constexpr int kFrom = 4, kTo = 4;
    template <class V>
    static void line(const V* d, V* t, int stride) {
      t[0] = d[2] - d[0];
      t[stride] = d[1] + d[2];
      t[2 * stride] = d[2] - d[1];
      t[3 * stride] = d[3] - d[1];
    }
  };

  struct Output {
    static constexpr int kFrom = 4, kTo = 2;
    template <class V>
    static void line(const V* m, V* y, int stride) {
      y[0] = m[0] + m[1] + m[2];
      y[stride] = m[1] - m[2] + m[3];
    }
  };

  struct WeightsAdjoint {
    static constexpr int kFrom = 4, kTo = 3;
    template <class V>
    static void line(const V* u, V* w, int stride) {
      const V even = 0.5f * (u[1] + u[2]);
      w[0] = even - u[0];
      w[stride] = 0.5f * (u[1] - u[2]);
      w[2 * stride] = even + u[3];
    }
  };

  struct OutputAdjoint {
    static constexpr int kFrom = 2, kTo = 4;
    template <class V>
    static void line(const V* y, V* m, int stride) {
      m[0] = y[0];
      m[stride] = y[0] + y[1];
      m[2 * stride] = y[0] - y[1];
      m[3 * stride] = y[1];
    }
  };
};

}  // namespace AGF_ISA
}  // namespace agf
