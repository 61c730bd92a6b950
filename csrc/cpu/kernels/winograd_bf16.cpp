// 3x3 convolution in bf16 by Winograd's F(2x2, 3x3): 16 products for 36, and transforms that only
// add. What is transformed is rounded to bf16 once more.
#include "winograd.h"

#include "cpu/engine_kernels.h"
#include "finish.h"
#include "tile.h"

namespace agf::AGF_ISA {
namespace {

constexpr int kPoints = 16;

struct Tiles {
  int64_t across, down;
  explicit Tiles(const Map& in) : across(in.width / 2), down(in.height / 2) {}
  Walk at(int64_t tile) const { return Walk(tile, down, across); }
};

// V [16][tiles][channels] of the tiles [first, first + count); `stride` bytes from point to point.
void transform_input(const Convolve& c, const Frame& f, int64_t first, int64_t count,
                     int64_t stride, char* transformed) {
  const int64_t line = c.in.line_bytes(), pixel = c.in.pixel_bytes();
  Walk at = Tiles(c.in).at(first);
  for (int64_t tile = 0; tile < count; ++tile, at.next()) {
    const char* corner = f.pixel(c.in, at.image, 2 * at.y - 1, 2 * at.x - 1);
    char* to = transformed + tile * pixel;
    for (int64_t byte = 0; byte < pixel; byte += kWidth * 2) {
      Floats half[4][4];
      for (int j = 0; j < 4; ++j) {
        const char* d = corner + j * pixel + byte;
        winograd2_input(load_cells<Cell::bf16>(d), load_cells<Cell::bf16>(d + line),
                        load_cells<Cell::bf16>(d + 2 * line), load_cells<Cell::bf16>(d + 3 * line),
                        &half[0][j], 4);
      }
      for (int i = 0; i < 4; ++i) {
        const Floats* h = half[i];
        Floats out[4];
        winograd2_input(h[0], h[1], h[2], h[3], out, 1);
        for (int j = 0; j < 4; ++j) {
          store_cells<Cell::bf16>(out[j], to + (4 * i + j) * stride + byte);
        }
      }
    }
  }
}

// From M [16][tiles][width] to the finished pixels of `count` tiles, channels [begin, + width).
void transform_output(const Convolve& c, const Frame& f, int64_t first, int64_t count,
                      int64_t stride, const char* products, int64_t begin, int64_t width) {
  alignas(64) float result[4][kMaxPanels * kLanes];
  Walk at = Tiles(c.in).at(first);
  for (int64_t tile = 0; tile < count; ++tile, at.next()) {
    for (int64_t ch = 0; ch < width; ch += kWidth) {
      const char* m = products + (tile * width + ch) * 4;
      Floats half[2][4];
      for (int j = 0; j < 4; ++j, m += stride) {
        const auto in = [&](int i) { return *reinterpret_cast<const Floats*>(m + 4 * i * stride); };
        winograd2_output(in(0), in(1), in(2), in(3), &half[0][j], 4);
      }
      for (int i = 0; i < 2; ++i) {
        Floats out[2];
        winograd2_output(half[i][0], half[i][1], half[i][2], half[i][3], out, 1);
        for (int j = 0; j < 2; ++j) *reinterpret_cast<Floats*>(&result[2 * i + j][ch]) = out[j];
      }
    }
    Walk pixel = at;
    for (int p = 0; p < 4; ++p) {
      pixel.y = 2 * at.y + p / 2;
      pixel.x = 2 * at.x + p % 2;
      finish(c, f, pixel, begin, width, result[p]);
    }
  }
}

void winograd_bf16(const Convolve& c, const Frame& f) {
  const int64_t pixel = c.in.pixel_bytes();
  const int64_t tiles = winograd_bf16_tiles(c);
  // Points a cache line more apart than their tiles need: else all fall on the same lines of L1.
  const int64_t stride = tiles * pixel + 64, product_stride = tiles * kMaxPanels * kLanes * 4 + 64;
  const int64_t panels = (c.out ? c.out : c.act).channels / kLanes;
  const int64_t panel_bytes = pixel * kLanes;
  char* transformed = f.scratch;
  char* products = transformed + kPoints * stride;
  const Tiles map(c.in);
  const int64_t all = f.images * map.down * map.across, no_tap = 0;
  const bool channels = split_channels(c, f, (all + kPixels - 1) / kPixels, panels);
  const Share mine(channels ? panels : all, f);
  const int64_t first_tile = channels ? 0 : mine.begin, last_tile = channels ? all : mine.end;
  const int64_t first_panel = channels ? mine.begin : 0, last_panel = channels ? mine.end : panels;
  for (int64_t first = first_tile; first < last_tile; first += tiles) {
    const int64_t count = last_tile - first < tiles ? last_tile - first : tiles;
    transform_input(c, f, first, count, stride, transformed);
    for (int64_t panel = first_panel; panel < last_panel;) {
      const int taken = next_panels(last_panel - panel);
      for (int point = 0; point < kPoints; ++point) {
        for (int64_t tile = 0; tile < count; tile += kPixels) {
          const char* at[kPixels];
          for (int p = 0; p < kPixels; ++p) {
            at[p] = transformed + point * stride + (tile + p) * pixel;
          }
          multiply<Cell::bf16>(taken, at, &no_tap, 1, pixel,
                               f.weights + c.weights + (point * panels + panel) * panel_bytes,
                               kLanes * 4, panel_bytes,
                               reinterpret_cast<float*>(products + point * product_stride) +
                                   tile * taken * kLanes);
        }
      }
      transform_output(c, f, first, count, product_stride, products, panel * kLanes, taken * kLanes);
      panel += taken;
    }
  }
}

const RegisterCpuKernel registered[] = {{winograd_bf16_kernel, Isa::AGF_ISA, winograd_bf16}};

}  // namespace
}  // namespace agf::AGF_ISA
