// 3x3 convolution in training, by Winograd's F(4x4, 3x3): forward, and the gradients of images and
// weights, each in a quarter of the products. A thread takes as many 4x4 tiles at a time as keep
// their transforms near, so that nothing but images and weights moves through memory.
#include "conv3x3.h"

#include <cstring>

#include "cpu/chunks.h"
#include "cpu/kernels.h"
#include "tile.h"

namespace agf::AGF_ISA {
namespace {

constexpr int kPoints = 36;

// Transforms of one round of tiles may take this much; it is walked through point by point.
int64_t tiles_at_once(int64_t C, int64_t K) {
  constexpr int64_t kBudget = 3 << 19;
  const int64_t fit = kBudget / (kPoints * 4 * (C + K)) / kPixels * kPixels;
  return fit < kPixels ? kPixels : fit > 64 ? 64 : fit;
}

inline Floats load(const float* p) { return load_as<Floats>(p); }
inline void store(float* p, Floats value) { __builtin_memcpy(p, &value, sizeof(value)); }

// Where tile number `tile` of images [N, H, W, channels] begins.
struct Corner {
  int64_t image, y, x;
  Corner(int64_t tile, const ConvShape& s)
      : image(tile / ((s.H / 4) * (s.W / 4))),
        y(tile / (s.W / 4) % (s.H / 4) * 4),
        x(tile % (s.W / 4) * 4) {}
  int64_t pixel(const ConvShape& s, int64_t dy, int64_t dx) const {
    return (image * s.H + y + dy) * s.W + x + dx;
  }
};

// out [kPixels, panels * 16] (+)= sum over t of v[t * v_step + p * v_pixel] * d[t][panel][16].
template <int panels>
__attribute__((noinline)) void multiply(const float* v, int64_t v_pixel, int64_t v_step,
                                        const float* d, int64_t d_panel, int64_t count, float* out,
                                        int64_t out_pixel, bool add) {
  constexpr int vectors = panels * kVectors;
  Floats sums[kPixels][vectors] = {};
  for (int64_t t = 0; t < count; ++t) {
    Floats w[vectors];
#pragma GCC unroll 16
    for (int j = 0; j < vectors; ++j) w[j] = load(d + j / kVectors * d_panel + j % kVectors * kWidth);
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 16
      for (int j = 0; j < vectors; ++j) sums[p][j] += v[p * v_pixel] * w[j];
    }
    v += v_step;
    d += kLanes;
  }
  for (int p = 0; p < kPixels; ++p) {
    for (int j = 0; j < vectors; ++j) {
      float* to = out + p * out_pixel + j * kWidth;
      store(to, add ? load(to) + sums[p][j] : sums[p][j]);
    }
  }
}

// The same for all of `channels` outputs, `d` packed [channels / 16][d_panel / 16][16].
void multiply_all(const float* v, int64_t v_pixel, int64_t v_step, const float* d, int64_t d_panel,
                  int64_t count, float* out, int64_t out_pixel, int64_t channels, bool add) {
  for (int64_t panel = 0; panel < channels / kLanes;) {
    const int taken = next_panels(channels / kLanes - panel);
    const auto run = [&](auto panels) {
      multiply<decltype(panels)::value>(v, v_pixel, v_step, d + panel * d_panel, d_panel, count,
                                        out + panel * kLanes, out_pixel, add);
    };
    if constexpr (kMaxPanels == 3) {
      if (taken == 3) run(std::integral_constant<int, 3>{});
      if (taken == 2) run(std::integral_constant<int, 2>{});
    }
    if (taken == 1) run(std::integral_constant<int, 1>{});
    panel += taken;
  }
}

// V [36][tiles][C] of the tiles [first, first + count) of x [N, H, W, C], zeros around.
void transform_input(const float* x, const ConvShape& s, int64_t C, int64_t first, int64_t count,
                     int64_t tiles, const float* zeros, float* transformed) {
  for (int64_t tile = 0; tile < count; ++tile) {
    const Corner at(first + tile, s);
    const float* d[6][6];
    for (int i = 0; i < 6; ++i) {
      for (int j = 0; j < 6; ++j) {
        const int64_t y = at.y + i - 1, xx = at.x + j - 1;
        const bool inside = y >= 0 && y < s.H && xx >= 0 && xx < s.W;
        d[i][j] = inside ? x + at.pixel(s, i - 1, j - 1) * C : zeros;
      }
    }
    for (int64_t c = 0; c < C; c += kWidth) {
      Floats half[6][6];
      for (int j = 0; j < 6; ++j) {
        winograd_input(load(d[0][j] + c), load(d[1][j] + c), load(d[2][j] + c), load(d[3][j] + c),
                       load(d[4][j] + c), load(d[5][j] + c), &half[0][j], 6);
      }
      for (int i = 0; i < 6; ++i) {
        Floats out[6];
        winograd_input(half[i][0], half[i][1], half[i][2], half[i][3], half[i][4], half[i][5], out, 1);
        for (int j = 0; j < 6; ++j) store(transformed + ((i * 6 + j) * tiles + tile) * C + c, out[j]);
      }
    }
  }
}

// From M [36][tiles][K] to y [N, H, W, K].
void transform_output(const float* products, const ConvShape& s, int64_t K, int64_t first,
                      int64_t count, int64_t tiles, float* y) {
  for (int64_t tile = 0; tile < count; ++tile) {
    const Corner at(first + tile, s);
    for (int64_t k = 0; k < K; k += kWidth) {
      const auto in = [&](int i, int j) {
        return load(products + ((i * 6 + j) * tiles + tile) * K + k);
      };
      Floats half[4][6];
      for (int j = 0; j < 6; ++j) {
        winograd_output(in(0, j), in(1, j), in(2, j), in(3, j), in(4, j), in(5, j), &half[0][j], 6);
      }
      for (int i = 0; i < 4; ++i) {
        Floats out[4];
        winograd_output(half[i][0], half[i][1], half[i][2], half[i][3], half[i][4], half[i][5], out, 1);
        for (int j = 0; j < 4; ++j) store(y + at.pixel(s, i, j) * K + k, out[j]);
      }
    }
  }
}

// The adjoint of transform_output: from grad [N, H, W, K] to [36][K / 16][tiles][16].
void transform_gradient(const float* grad, const ConvShape& s, int64_t K, int64_t first,
                        int64_t count, int64_t tiles, float* transformed) {
  for (int64_t tile = 0; tile < count; ++tile) {
    const Corner at(first + tile, s);
    for (int64_t k = 0; k < K; k += kWidth) {
      const auto in = [&](int i, int j) { return load(grad + at.pixel(s, i, j) * K + k); };
      Floats half[6][4];
      for (int j = 0; j < 4; ++j) {
        winograd_output_adjoint(in(0, j), in(1, j), in(2, j), in(3, j), &half[0][j], 4);
      }
      float* to = transformed + (k / kLanes * tiles + tile) * kLanes + k % kLanes;
      for (int i = 0; i < 6; ++i) {
        Floats out[6];
        winograd_output_adjoint(half[i][0], half[i][1], half[i][2], half[i][3], out, 1);
        for (int j = 0; j < 6; ++j) store(to + (i * 6 + j) * tiles * K, out[j]);
      }
    }
  }
}

// u [36][outputs / 16][inputs][16] from w [K, 3, 3, C]. Backward, outputs and inputs have changed
// places and the taps their order.
void conv3x3_weights(const float* w, float* u, ConvShape s, bool backward, int64_t begin,
                     int64_t end) {
  const int64_t outputs = backward ? s.C : s.K, inputs = backward ? s.K : s.C;
  alignas(64) float taps[9][kLanes][kLanes];  // [tap][input][output]
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t first = 0; first < inputs; first += kLanes) {
      for (int tap = 0; tap < 9; ++tap) {
        for (int in = 0; in < kLanes; ++in) {
          for (int out = 0; out < kLanes; ++out) {
            const int64_t k = backward ? first + in : panel * kLanes + out;
            const int64_t c = backward ? panel * kLanes + out : first + in;
            taps[tap][in][out] = w[(k * 9 + (backward ? 8 - tap : tap)) * s.C + c];
          }
        }
      }
      for (int in = 0; in < kLanes; ++in) {
        for (int out = 0; out < kLanes; out += kWidth) {
          Floats half[6][3];
          for (int j = 0; j < 3; ++j) {
            winograd_weights(load(&taps[j][in][out]), load(&taps[3 + j][in][out]),
                            load(&taps[6 + j][in][out]), &half[0][j], 3);
          }
          float* to = u + (panel * inputs + first + in) * kLanes + out;
          for (int i = 0; i < 6; ++i) {
            Floats points[6];
            winograd_weights(half[i][0], half[i][1], half[i][2], points, 1);
            for (int j = 0; j < 6; ++j) store(to + (i * 6 + j) * outputs * inputs, points[j]);
          }
        }
      }
    }
  }
}

void conv3x3_products(const float* x, const float* u, float* y, ConvShape s, int64_t begin,
                      int64_t end) {
  const int64_t C = s.C, K = s.K, tiles = tiles_at_once(C, K);
  const Scratch<float> memory(kPoints * tiles * (C + K) + C + kLanes);
  float* zeros = memory.get();
  float* transformed = zeros + C;
  float* products = transformed + kPoints * tiles * C;
  for (int64_t c = 0; c < C; ++c) zeros[c] = 0;
  for (int64_t first = begin; first < end; first += tiles) {
    const int64_t count = end - first < tiles ? end - first : tiles;
    transform_input(x, s, C, first, count, tiles, zeros, transformed);
    for (int point = 0; point < kPoints; ++point) {
      for (int64_t tile = 0; tile < count; tile += kPixels) {
        multiply_all(transformed + (point * tiles + tile) * C, C, 1, u + point * C * K, C * kLanes,
                     C, products + (point * tiles + tile) * K, K, K, false);
      }
    }
    transform_output(products, s, K, first, count, tiles, y);
  }
}

void conv3x3_gradient(const float* x, const float* grad, float* du, ConvShape s, int64_t begin,
                      int64_t end) {
  const int64_t C = s.C, K = s.K, tiles = tiles_at_once(C, K);
  if (begin == end) std::memset(du, 0, kPoints * C * K * sizeof(float));
  const Scratch<float> memory(kPoints * tiles * (C + K) + C);
  float* zeros = memory.get();
  float* inputs = zeros + C;
  float* outputs = inputs + kPoints * tiles * C;
  for (int64_t c = 0; c < C; ++c) zeros[c] = 0;
  for (int64_t first = begin; first < end; first += tiles) {
    const int64_t count = end - first < tiles ? end - first : tiles;
    transform_input(x, s, C, first, count, tiles, zeros, inputs);
    transform_gradient(grad, s, K, first, count, tiles, outputs);
    for (int point = 0; point < kPoints; ++point) {
      for (int64_t c = 0; c < C; c += kPixels) {
        multiply_all(inputs + point * tiles * C + c, 1, C, outputs + point * tiles * K,
                     tiles * kLanes, count, du + (point * C + c) * K, K, K, first != begin);
      }
    }
  }
}

void conv3x3_gradient_weights(const float* du, int64_t parts, float* dw, ConvShape s, int64_t begin,
                              int64_t end) {
  const int64_t points = s.C * s.K;
  alignas(64) float taps[9][kLanes][kLanes];  // [tap][input][output]
  for (int64_t block = begin; block < end; ++block) {
    const int64_t c = block / (s.K / kLanes) * kLanes, k = block % (s.K / kLanes) * kLanes;
    for (int in = 0; in < kLanes; ++in) {
      for (int out = 0; out < kLanes; out += kWidth) {
        const auto sum = [&](int point) {
          const float* from = du + point * points + (c + in) * s.K + k + out;
          Floats total = load(from);
          for (int64_t part = 1; part < parts; ++part) total += load(from + part * kPoints * points);
          return total;
        };
        Floats half[3][6];
        for (int j = 0; j < 6; ++j) {
          winograd_weights_adjoint(sum(j), sum(6 + j), sum(12 + j), sum(18 + j), sum(24 + j),
                                  sum(30 + j), &half[0][j], 6);
        }
        for (int i = 0; i < 3; ++i) {
          Floats w[3];
          winograd_weights_adjoint(half[i][0], half[i][1], half[i][2], half[i][3], half[i][4],
                                  half[i][5], w, 1);
          for (int j = 0; j < 3; ++j) store(&taps[i * 3 + j][in][out], w[j]);
        }
      }
    }
    for (int out = 0; out < kLanes; ++out) {
      for (int tap = 0; tap < 9; ++tap) {
        float* to = dw + ((k + out) * 9 + tap) * s.C + c;
        for (int in = 0; in < kLanes; ++in) to[in] = taps[tap][in][out];
      }
    }
  }
}

const RegisterCpuKernel registered[] = {
    {conv3x3_weights_kernel, Isa::AGF_ISA, conv3x3_weights},
    {conv3x3_products_kernel, Isa::AGF_ISA, conv3x3_products},
    {conv3x3_gradient_kernel, Isa::AGF_ISA, conv3x3_gradient},
    {conv3x3_gradient_weights_kernel, Isa::AGF_ISA, conv3x3_gradient_weights},
};

}  // namespace
}  // namespace agf::AGF_ISA
