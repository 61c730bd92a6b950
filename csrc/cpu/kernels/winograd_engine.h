// The engine's side of Winograd's convolutions: tiles come from a map, and results leave through
// the epilogue of a direct convolution.
#pragma once
#include "cpu/engine_kernels.h"
#include "epilogue.h"
#include "parts.h"
#include "winograd_tiles.h"

namespace agf::AGF_ISA {

// A thread's part of the convolution `c`.
template <class P, class Weights>
void convolve_map(const Convolve& c, const ExecutionContext& f, const Part& mine,
                  const Weights& weights) {
  constexpr int side = P::kTile;
  const WinogradLayout layout(c);
  if (mine.first_panel == mine.last_panel) return;
  const TileRange tiles{mine.first_row, mine.last_row - mine.first_row, c.in.height / side,
                        c.in.width / side};
  const PointMatrices v{f.scratch, layout.inputs};
  alignas(64) float result[side * side][kMaxPanels * kLanes];
  convolve_tiles<P>(
      tiles, layout.tiles, c.in.channels, mine.first_panel, mine.last_panel, v, v[P::kPoints],
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
