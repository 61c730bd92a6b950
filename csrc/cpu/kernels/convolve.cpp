// Direct 1x1 and 3x3 convolution, float32, bf16 or int8: each tile of pixels is multiplied with
// panels of packed weights straight from the input map, with no matrix of patches in between.
#include "cpu/engine_kernels.h"
#include "epilogue.h"
#include "tile.h"

namespace agf::AGF_ISA {
namespace {

template <Storage storage>
void convolve_stored(const Convolve& c, const ExecutionContext& f) {
  const Map& result = c.out ? c.out : c.act;
  const int64_t pixels = f.images * c.in.height * c.in.width;
  const int64_t blocks = (pixels + kPixels - 1) / kPixels;
  const int64_t panels = result.channels / kLanes;
  const int64_t tap_bytes = c.in_channels * storage_bytes(storage);
  const int64_t panel_bytes = c.taps * tap_bytes * kLanes;
  const int64_t reach = c.taps == 9 ? 1 : 0;
  int64_t taps[9];
  for (int64_t t = 0; t < c.taps; ++t) {
    taps[t] = t / 3 * c.in.line_bytes() + t % 3 * c.in.pixel_bytes();
  }

  const bool channels = split_channels(c, f, blocks, panels);
  const Share mine(channels ? panels : blocks, f);
  const int64_t first_block = channels ? 0 : mine.begin, last_block = channels ? blocks : mine.end;
  const int64_t first_panel = channels ? mine.begin : 0, last_panel = channels ? mine.end : panels;
  Tile tile;
  for (int64_t panel = first_panel; panel < last_panel;) {
    const int taken = next_panels(last_panel - panel);
    PixelIterator pixel(first_block * kPixels, c.in.height, c.in.width);
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t left = pixels - block * kPixels;
      const int valid = left < kPixels ? static_cast<int>(left) : kPixels;
      const char* at[kPixels];
      const PixelIterator start = pixel;
      for (int p = 0; p < kPixels; ++p) {
        at[p] = f.pixel(c.in, pixel.image, pixel.y - reach, pixel.x - reach);
        prefetch(c, f, pixel, panel * kLanes, taken * kLanes);
        if (p + 1 < valid) pixel.next();  // the last pixel stands in for those past the end
      }
      multiply<storage>(taken, at, Taps{taps, c.taps}, tap_bytes,
                        f.weights + c.weights + panel * panel_bytes, kLanes * 4, panel_bytes,
                        tile.sums);
      pixel.next();
      PixelIterator to = start;
      for (int p = 0; p < valid; ++p, to.next()) {
        epilogue(c, f, to, panel * kLanes, taken * kLanes, tile.sums + p * taken * kLanes);
      }
    }
    panel += taken;
  }
}

void convolve(const Convolve& c, const ExecutionContext& f) {
  switch (c.in.storage) {
    case Storage::f32: return convolve_stored<Storage::f32>(c, f);
    case Storage::bf16: return convolve_stored<Storage::bf16>(c, f);
    case Storage::u8: return convolve_stored<Storage::u8>(c, f);
  }
}

const RegisterCpuKernel registered[] = {{convolve_kernel, Isa::AGF_ISA, convolve}};

}  // namespace
}  // namespace agf::AGF_ISA
