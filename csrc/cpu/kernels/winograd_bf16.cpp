// 3x3 convolution in bf16 by Winograd's F(2x2, 3x3), 16 products for 36, or F(4x4, 3x3), 36 for
// 144. What is transformed is rounded to bf16 once more. That costs F(2x2), whose transforms only
// add, 1.8 times the error of a direct convolution in bf16, and F(4x4) 4.5 times: that is no more
// than int8 costs, whose products are twice as fast but four times as many.
#include "winograd.h"

#include "cpu/engine_kernels.h"
#include "epilogue.h"
#include "tile.h"

namespace agf::AGF_ISA {
namespace {

// `count` tiles of results, of the map's from number `first` on.
struct Tiles {
  int64_t first, count, down, across;
  PixelIterator begin() const { return PixelIterator(first, down, across); }
};

// V [points][tiles][channels]; `stride` bytes from point to point.
template <class W>
void transform_input(const Convolve& c, const ExecutionContext& f, const Tiles& tiles,
                     int64_t stride, char* transformed) {
  constexpr int side = W::kTile, reach = W::kWindow;
  const int64_t line = c.in.line_bytes(), pixel = c.in.pixel_bytes();
  PixelIterator at = tiles.begin();
  for (int64_t tile = 0; tile < tiles.count; ++tile, at.next()) {
    const char* corner = f.pixel(c.in, at.image, side * at.y - 1, side * at.x - 1);
    char* to = transformed + tile * pixel;
    for (int64_t byte = 0; byte < pixel; byte += kWidth * 2) {
      Floats half[reach][reach];  // B^T d
      for (int j = 0; j < reach; ++j) {
        Floats d[reach];
        for (int i = 0; i < reach; ++i) {
          d[i] = load_floats<Storage::bf16>(corner + j * pixel + i * line + byte);
        }
        W::input(d, &half[0][j], reach);
      }
      for (int i = 0; i < reach; ++i) {
        Floats out[reach];
        W::input(half[i], out, 1);
        for (int j = 0; j < reach; ++j) {
          store_floats<Storage::bf16>(out[j], to + (reach * i + j) * stride + byte);
        }
      }
    }
  }
}

// From M [points][tiles][width] to the finished pixels, channels [begin, begin + width).
template <class W>
void transform_output(const Convolve& c, const ExecutionContext& f, const Tiles& tiles,
                      int64_t stride, const char* products, int64_t begin, int64_t width) {
  constexpr int side = W::kTile, reach = W::kWindow;
  alignas(64) float result[side * side][kMaxPanels * kLanes];
  PixelIterator at = tiles.begin();
  for (int64_t tile = 0; tile < tiles.count; ++tile, at.next()) {
    for (int64_t ch = 0; ch < width; ch += kWidth) {
      const char* m = products + (tile * width + ch) * 4;
      Floats half[side][reach];  // A^T m
      for (int j = 0; j < reach; ++j) {
        Floats in[reach];
        for (int i = 0; i < reach; ++i) {
          in[i] = *reinterpret_cast<const Floats*>(m + (reach * i + j) * stride);
        }
        W::output(in, &half[0][j], reach);
      }
      for (int i = 0; i < side; ++i) {
        Floats out[side];
        W::output(half[i], out, 1);
        for (int j = 0; j < side; ++j) {
          *reinterpret_cast<Floats*>(&result[side * i + j][ch]) = out[j];
        }
      }
    }
    PixelIterator pixel = at;
    for (int p = 0; p < side * side; ++p) {
      pixel.y = side * at.y + p / side;
      pixel.x = side * at.x + p % side;
      epilogue(c, f, pixel, begin, width, result[p]);
    }
  }
}

template <class W>
void winograd_tiles(const Convolve& c, const ExecutionContext& f) {
  constexpr int side = W::kTile, points = W::kWindow * W::kWindow;
  const int64_t pixel = c.in.pixel_bytes();
  const int64_t most = winograd_bf16_tiles(c);
  // Points a cache line more apart than their tiles need: else all fall on the same lines of L1.
  const int64_t stride = most * pixel + 64, product_stride = most * kMaxPanels * kLanes * 4 + 64;
  const int64_t panels = (c.out ? c.out : c.act).channels / kLanes;
  const int64_t point_bytes = pixel * kLanes, panel_bytes = points * point_bytes;
  const char* weights = f.weights + c.weights;
  char* transformed = f.scratch;
  char* products = transformed + points * stride;
  Tiles tiles{0, 0, c.in.height / side, c.in.width / side};
  const int64_t all = f.images * tiles.down * tiles.across, no_tap = 0;
  const bool channels = split_channels(c, f, (all + kPixels - 1) / kPixels, panels);
  const Share mine(channels ? panels : all, f);
  const int64_t first_tile = channels ? 0 : mine.begin, last_tile = channels ? all : mine.end;
  const int64_t first_panel = channels ? mine.begin : 0, last_panel = channels ? mine.end : panels;
  for (tiles.first = first_tile; tiles.first < last_tile; tiles.first += most) {
    tiles.count = last_tile - tiles.first < most ? last_tile - tiles.first : most;
    transform_input<W>(c, f, tiles, stride, transformed);
    for (int64_t panel = first_panel; panel < last_panel;) {
      const int taken = next_panels(last_panel - panel);
      for (int point = 0; point < points; ++point) {
        for (int64_t tile = 0; tile < tiles.count; tile += kPixels) {
          const char* at[kPixels];
          for (int p = 0; p < kPixels; ++p) {
            at[p] = transformed + point * stride + (tile + p) * pixel;
          }
          multiply<Storage::bf16>(
              taken, at, &no_tap, 1, pixel, weights + panel * panel_bytes + point * point_bytes,
              kLanes * 4, panel_bytes,
              reinterpret_cast<float*>(products + point * product_stride) + tile * taken * kLanes);
        }
      }
      transform_output<W>(c, f, tiles, product_stride, products, panel * kLanes, taken * kLanes);
      panel += taken;
    }
  }
}

void winograd_bf16(const Convolve& c, const ExecutionContext& f) {
  c.winograd == 4 ? winograd_tiles<WinogradF4>(c, f) : winograd_tiles<WinogradF2>(c, f);
}

const RegisterCpuKernel registered[] = {{winograd_bf16_kernel, Isa::AGF_ISA, winograd_bf16}};

}  // namespace
}  // namespace agf::AGF_ISA
