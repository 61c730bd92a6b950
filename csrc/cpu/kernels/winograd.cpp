// 3x3 convolution by Winograd's F(4x4, 3x3), float32. A thread takes some tiles of 4x4 pixels:
// their input transforms; then for each group of output channels and each block of input channels
// the transform of these weights, which its L2 cache holds, and 36 small matrix products; then the
// output transform, which ends in the same finish as a direct convolution.
//
// Weights are transformed at each use, because transformed ones would take four times the memory,
// and with few tiles reading them would take longer than making them.
#include "winograd.h"

#include "cpu/engine_kernels.h"
#include "epilogue.h"
#include "tile.h"

namespace agf::AGF_ISA {
namespace {

constexpr int kPoints = 36;

// Where a matrix for each point lies. One line of cache apart, because a power of two between them
// would put the 36 values that a transform reads or writes into one set of the L1 cache.
struct Matrices {
  float* data;
  int64_t stride;  // floats
  Matrices(float* from, int64_t rows, int64_t columns)
      : data(from), stride(rows * columns + kWinogradPadding) {}
  float* operator[](int point) const { return data + point * stride; }
  float* end() const { return data + kPoints * stride; }
};

struct Tiles {
  int64_t across, down;
  explicit Tiles(const Map& in) : across(in.width / 4), down(in.height / 4) {}
  PixelIterator at(int64_t tile) const { return PixelIterator(tile, down, across); }
};

// V [count][channels] of the tiles [first, first + count).
void transform_input(const Convolve& c, const ExecutionContext& f, int64_t first, int64_t count,
                     const Matrices& v) {
  const int64_t channels = c.in.channels;
  const int64_t line = c.in.line_bytes() / 4, pixel = channels;
  PixelIterator at = Tiles(c.in).at(first);
  for (int64_t tile = 0; tile < count; ++tile, at.next()) {
    const auto* corner =
        reinterpret_cast<const float*>(f.pixel(c.in, at.image, 4 * at.y - 1, 4 * at.x - 1));
    for (int64_t ch = 0; ch < channels; ch += kWidth) {
      Floats half[6][6];
      for (int j = 0; j < 6; ++j) {
        const float* d = corner + j * pixel + ch;
        const auto in = [&](int i) { return *reinterpret_cast<const Floats*>(d + i * line); };
        winograd_input(in(0), in(1), in(2), in(3), in(4), in(5), &half[0][j], 6);
      }
      for (int i = 0; i < 6; ++i) {
        Floats out[6];
        winograd_input(half[i][0], half[i][1], half[i][2], half[i][3], half[i][4], half[i][5], out,
                       1);
        for (int j = 0; j < 6; ++j) {
          *reinterpret_cast<Floats*>(v[i * 6 + j] + tile * channels + ch) = out[j];
        }
      }
    }
  }
}

// From M [count][width] to the finished pixels of these tiles, channels [begin, begin + width).
void transform_output(const Convolve& c, const ExecutionContext& f, int64_t first, int64_t count,
                      const Matrices& m, int64_t begin, int64_t width) {
  alignas(64) float result[16][kMaxPanels * kLanes];
  PixelIterator at = Tiles(c.in).at(first);
  for (int64_t tile = 0; tile < count; ++tile, at.next()) {
    for (int64_t ch = 0; ch < width; ch += kWidth) {
      const auto in = [&](int i, int j) {
        return *reinterpret_cast<const Floats*>(m[i * 6 + j] + tile * width + ch);
      };
      Floats half[4][6];
      for (int j = 0; j < 6; ++j) {
        winograd_output(in(0, j), in(1, j), in(2, j), in(3, j), in(4, j), in(5, j), &half[0][j], 6);
      }
      for (int i = 0; i < 4; ++i) {
        Floats out[4];
        winograd_output(half[i][0], half[i][1], half[i][2], half[i][3], half[i][4], half[i][5], out,
                        1);
        for (int j = 0; j < 4; ++j) *reinterpret_cast<Floats*>(&result[i * 4 + j][ch]) = out[j];
      }
    }
    PixelIterator pixel = at;
    for (int p = 0; p < 16; ++p) {
      pixel.y = 4 * at.y + p / 4;
      pixel.x = 4 * at.x + p % 4;
      epilogue(c, f, pixel, begin, width, result[p]);
    }
  }
}

// U [inputs][panels * 16] of the weights [panel][channel][9][16] of some panels and input channels.
void transform_weights(const float* weights, int64_t channels, int64_t inputs, int panels,
                       const Matrices& u) {
  const int64_t width = panels * kLanes;
  for (int panel = 0; panel < panels; ++panel) {
    for (int64_t ch = 0; ch < inputs; ++ch) {
      for (int64_t lane = 0; lane < kLanes; lane += kWidth) {
        const float* w = weights + (panel * channels + ch) * 9 * kLanes + lane;
        const int64_t to = ch * width + panel * kLanes + lane;
        const auto in = [&](int i, int j) {
          return *reinterpret_cast<const Floats*>(w + (i * 3 + j) * kLanes);
        };
        Floats half[6][3];
        for (int j = 0; j < 3; ++j) winograd_weights(in(0, j), in(1, j), in(2, j), &half[0][j], 3);
        for (int i = 0; i < 6; ++i) {
          Floats out[6];
          winograd_weights(half[i][0], half[i][1], half[i][2], out, 1);
          for (int j = 0; j < 6; ++j) {
            *reinterpret_cast<Floats*>(u[i * 6 + j] + to) = out[j];
          }
        }
      }
    }
  }
}

// M [tiles][panels * 16] = or += V [tiles][inputs] x U [inputs][panels * 16]. Adding up
// sums of blocks of inputs, not all products in turn, halves the rounding errors.
template <int tiles, int panels>
__attribute__((noinline)) void multiply(const float* v, int64_t stride, const float* u,
                                        int64_t inputs, bool add, float* m) {
  constexpr int vectors = panels * kVectors;
  Floats sums[tiles][vectors];
  const float* at[tiles];
#pragma GCC unroll 16
  for (int p = 0; p < tiles; ++p) {
    at[p] = v + p * stride;
#pragma GCC unroll 16
    for (int i = 0; i < vectors; ++i) sums[p][i] = Floats{};
  }
  for (int64_t ch = 0; ch < inputs; ++ch) {
    Floats w[vectors];
#pragma GCC unroll 16
    for (int i = 0; i < vectors; ++i) w[i] = *reinterpret_cast<const Floats*>(u + i * kWidth);
#pragma GCC unroll 16
    for (int p = 0; p < tiles; ++p) {
#pragma GCC unroll 16
      for (int i = 0; i < vectors; ++i) sums[p][i] += at[p][ch] * w[i];
    }
    u += panels * kLanes;
  }
#pragma GCC unroll 16
  for (int p = 0; p < tiles; ++p) {
#pragma GCC unroll 16
    for (int i = 0; i < vectors; ++i) {
      auto* to = reinterpret_cast<Floats*>(m + (p * vectors + i) * kWidth);
      *to = add ? *to + sums[p][i] : sums[p][i];
    }
  }
}

// The same for kPixels tiles, or for half as many where there are no more.
void multiply(int64_t tiles, int panels, const float* v, int64_t stride, const float* u,
              int64_t inputs, bool add, float* m) {
  const auto run = [&](auto count) {
    constexpr int width = decltype(count)::value;
    if (tiles > kPixels / 2) return multiply<kPixels, width>(v, stride, u, inputs, add, m);
    multiply<kPixels / 2, width>(v, stride, u, inputs, add, m);
  };
  if constexpr (kMaxPanels == 3) {
    if (panels == 3) return run(std::integral_constant<int, 3>{});
    if (panels == 2) return run(std::integral_constant<int, 2>{});
  }
  run(std::integral_constant<int, 1>{});
}

// Splits the work over output channels where there are few tiles: each thread then transforms only
// its own weights, but all of the input.
bool split_channels(const Convolve& c, const ExecutionContext& f, int64_t tiles, int64_t panels) {
  return f.threads > 1 && panels >= f.threads && tiles <= winograd_tiles(c) &&
         2 * tiles < panels * kLanes;
}

void winograd(const Convolve& c, const ExecutionContext& f) {
  const int64_t channels = c.in.channels, tiles = winograd_tiles(c);
  const int64_t panels = (c.out ? c.out : c.act).channels / kLanes;
  const auto* weights = reinterpret_cast<const float*>(f.weights + c.weights);
  const Matrices v(reinterpret_cast<float*>(f.scratch), tiles, channels);
  const Tiles map(c.in);
  const int64_t total = f.images * map.down * map.across;
  const bool by_channels = split_channels(c, f, total, panels);
  const Share mine(by_channels ? panels : total, f);
  const int64_t first_tile = by_channels ? 0 : mine.begin,
                last_tile = by_channels ? total : mine.end;
  const int64_t first_panel = by_channels ? mine.begin : 0,
                last_panel = by_channels ? mine.end : panels;
  for (int64_t first = first_tile; first < last_tile; first += tiles) {
    const int64_t count = last_tile - first < tiles ? last_tile - first : tiles;
    transform_input(c, f, first, count, v);
    for (int64_t panel = first_panel; panel < last_panel;) {
      const int taken = next_panels(last_panel - panel);
      const int64_t width = taken * kLanes;
      const Matrices m(v.end(), tiles, width);
      for (int64_t begin = 0; begin < channels; begin += kWinogradInputs) {
        const int64_t inputs =
            channels - begin < kWinogradInputs ? channels - begin : kWinogradInputs;
        const Matrices u(m.end(), inputs, width);
        transform_weights(weights + (panel * channels + begin) * 9 * kLanes, channels, inputs,
                          taken, u);
        for (int point = 0; point < kPoints; ++point) {
          for (int64_t tile = 0; tile < count; tile += kPixels) {
            multiply(count - tile, taken, v[point] + tile * channels + begin, channels, u[point],
                     inputs, begin > 0, m[point] + tile * width);
          }
        }
      }
      transform_output(c, f, first, count, m, panel * kLanes, width);
      panel += taken;
    }
  }
}

const RegisterCpuKernel registered[] = {{winograd_kernel, Isa::AGF_ISA, winograd}};

}  // namespace
}  // namespace agf::AGF_ISA
