// Direct 1x1 and 3x3 convolution, float32, bf16 or int8: each tile of pixels is multiplied with
// panels of packed weights straight from the input map, with no matrix of patches in between.
#include "cpu/engine_kernels.h"
#include "epilogue.h"
#include "parts.h"

namespace agf::AGF_ISA {
namespace {

template <Storage storage>
void convolve_stored(const Convolve& c, const ExecutionContext& f) {
  const int64_t pixels = f.images * pixels_of(c.in);
  const int64_t tap_bytes = c.in_channels * storage_bytes(storage);
  const int64_t panel_bytes = c.taps * tap_bytes * kLanes;
  const int64_t reach = c.taps == 9 ? 1 : 0;
  int64_t taps[9];
  for (int64_t t = 0; t < c.taps; ++t) {
    taps[t] = t / 3 * c.in.line_bytes() + t % 3 * c.in.pixel_bytes();
  }

  const Part mine = direct_part(c, f);
  Tile tile;
  for (int64_t panel = mine.first_panel; panel < mine.last_panel;) {
    const int taken = next_panels(mine.last_panel - panel);
    PixelIterator pixel(mine.first_row * kPixels, c.in.height, c.in.width);
    for (int64_t block = mine.first_row; block < mine.last_row; ++block) {
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
