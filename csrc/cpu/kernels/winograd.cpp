// 3x3 convolution by Winograd's F(4x4, 3x3), float32. A thread takes as many 4x4 tiles as keep
// its L2 cache: their input transforms, then for each group of output channels 36 small matrix
// products and the output transform, which ends in the same finish as a direct convolution.
#include "winograd.h"

#include "finish.h"
#include "cpu/engine_kernels.h"
#include "tile.h"

namespace agf::AGF_ISA {
namespace {

constexpr int kPoints = 36;

struct Tiles {
  int64_t across, down;
  explicit Tiles(const Map& in) : across(in.width / 4), down(in.height / 4) {}
  Walk at(int64_t tile) const { return Walk(tile, down, across); }
};

// V [36][tiles][channels] of the tiles [first, first + count).
void transform_input(const Convolve& c, const Frame& f, int64_t first, int64_t count,
                     int64_t tiles, float* transformed) {
  const int64_t channels = c.in.channels;
  const int64_t line = c.in.line_bytes() / 4, pixel = channels;
  Walk at = Tiles(c.in).at(first);
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
        winograd_input(half[i][0], half[i][1], half[i][2], half[i][3], half[i][4], half[i][5], out, 1);
        for (int j = 0; j < 6; ++j) {
          float* to = transformed + ((i * 6 + j) * tiles + tile) * channels + ch;
          *reinterpret_cast<Floats*>(to) = out[j];
        }
      }
    }
  }
}

// From M [36][tiles][width] to the finished pixels of `count` tiles, channels [begin, + width).
void transform_output(const Convolve& c, const Frame& f, int64_t first, int64_t count,
                      int64_t tiles, const float* products, int64_t begin,
                      int64_t width) {
  alignas(64) float result[16][kMaxPanels * kLanes];
  Walk at = Tiles(c.in).at(first);
  for (int64_t tile = 0; tile < count; ++tile, at.next()) {
    for (int64_t ch = 0; ch < width; ch += kWidth) {
      const auto in = [&](int i, int j) {
        return *reinterpret_cast<const Floats*>(products + ((i * 6 + j) * tiles + tile) * width + ch);
      };
      Floats half[4][6];
      for (int j = 0; j < 6; ++j) {
        winograd_output(in(0, j), in(1, j), in(2, j), in(3, j), in(4, j), in(5, j), &half[0][j], 6);
      }
      for (int i = 0; i < 4; ++i) {
        Floats out[4];
        winograd_output(half[i][0], half[i][1], half[i][2], half[i][3], half[i][4], half[i][5], out, 1);
        for (int j = 0; j < 4; ++j) *reinterpret_cast<Floats*>(&result[i * 4 + j][ch]) = out[j];
      }
    }
    Walk pixel = at;
    for (int p = 0; p < 16; ++p) {
      pixel.y = 4 * at.y + p / 4;
      pixel.x = 4 * at.x + p % 4;
      finish(c, f, pixel, begin, width, result[p]);
    }
  }
}

void winograd(const Convolve& c, const Frame& f) {
  const int64_t channels = c.in.channels, tiles = winograd_tiles(c);
  const int64_t panels = (c.out ? c.out : c.act).channels / kLanes;
  const int64_t panel_bytes = channels * kLanes * 4;
  float* transformed = reinterpret_cast<float*>(f.scratch);
  float* products = transformed + kPoints * tiles * channels;
  const Tiles map(c.in);
  const Share mine(f.images * map.down * map.across, f);
  const int64_t no_tap = 0;
  for (int64_t first = mine.begin; first < mine.end; first += tiles) {
    const int64_t count = mine.end - first < tiles ? mine.end - first : tiles;
    transform_input(c, f, first, count, tiles, transformed);
    for (int64_t panel = 0; panel < panels;) {
      const int taken = next_panels(panels - panel);
      for (int point = 0; point < kPoints; ++point) {
        for (int64_t tile = 0; tile < count; tile += kPixels) {
          const char* at[kPixels];
          for (int p = 0; p < kPixels; ++p) {
            at[p] = reinterpret_cast<const char*>(transformed + (point * tiles + tile + p) * channels);
          }
          multiply<Cell::f32>(taken, at, &no_tap, 1, channels * 4,
                              f.weights + c.weights + (point * panels + panel) * panel_bytes,
                              kLanes * 4, panel_bytes,
                              products + (point * tiles + tile) * taken * kLanes);
        }
      }
      transform_output(c, f, first, count, tiles, products, panel * kLanes, taken * kLanes);
      panel += taken;
    }
  }
}

const RegisterCpuKernel registered[] = {{winograd_kernel, Isa::AGF_ISA, winograd}};

}  // namespace
}  // namespace agf::AGF_ISA
