// The engine's side of Winograd's convolutions: tiles come from a map, and results leave through
// the epilogue of a direct convolution.
#pragma once
#include "cpu/engine_kernels.h"
#include "epilogue.h"
#include "winograd_tiles.h"

namespace agf::AGF_ISA {

// All tiles of a team's images.
inline int64_t tiles_of(const Convolve& c, const ExecutionContext& f) {
  return f.images * (c.in.height / c.winograd) * (c.in.width / c.winograd);
}

// A thread's part of the convolution `c`, of its panels of outputs where `by_channels`, else of its
// tiles.
template <class P, class Weights>
void convolve_map(const Convolve& c, const ExecutionContext& f, bool by_channels,
                  const Weights& weights) {
  constexpr int side = P::kTile;
  const WinogradLayout layout(c);
  const TileRange all{0, tiles_of(c, f), c.in.height / side, c.in.width / side};
  const int64_t panels = (c.out ? c.out : c.act).channels / kLanes;
  const Share mine(by_channels ? panels : all.count, f);
  TileRange tiles = all;
  if (!by_channels) tiles.first = mine.begin, tiles.count = mine.end - mine.begin;
  const PointMatrices v{f.scratch, layout.inputs};
  alignas(64) float result[side * side][kMaxPanels * kLanes];
  convolve_tiles<P>(
      tiles, layout.tiles, c.in.channels, by_channels ? mine.begin : 0,
      by_channels ? mine.end : panels, v, v[P::kPoints],
      [&](const PixelIterator& at, int64_t, bool) {
        return StridedWindow{f.pixel(c.in, at.image, side * at.y - 1, side * at.x - 1),
                             c.in.line_bytes(), c.in.pixel_bytes()};
      },
      weights,
      [&](const PixelIterator& at, int64_t begin, int64_t width, int64_t ch,
          const auto& transform) {
        transform(0, [&](int i, int j, Floats value) {
          *reinterpret_cast<Floats*>(&result[i * side + j][ch]) = value;
        });
        if (ch + kWidth < width) return;  // the epilogue takes all channels of a pixel
        PixelIterator pixel = at;
        for (int p = 0; p < side * side; ++p) {
          pixel.y = side * at.y + p / side;
          pixel.x = side * at.x + p % side;
          epilogue(c, f, pixel, begin, width, result[p]);
        }
      });
}

}  // namespace agf::AGF_ISA
