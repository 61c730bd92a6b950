// Direct 1x1 and 3x3 convolution in bf16 or int8 on AMX's tiles: 32 pixels times 32 outputs in four
// tiles of sums. Pixels are loaded straight from the map, whose pixels lie at one distance from
// each other, and weights as they are packed for the other variants. Each of a tile's products
// takes 64 bytes of each pixel, or the largest share of a pixel's bytes that comes out even.
#include "cpu/engine_kernels.h"
#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/tile.h"
#include "parts.h"
#include "tile.h"

namespace agf::AGF_ISA {
namespace {

constexpr int kBlock = 2;  // tiles of pixels, and panels of outputs

struct PixelTile {
  int64_t image, first;  // position
  int skipped;           // rows at its start

  PixelTile(const Positions& range, int64_t number) : image(number / range.per_image), skipped(0) {
    const int64_t start = number % range.per_image * kTileRows;
    if (range.by_line) {
      first = start / range.width * range.line + start % range.width;
    } else {
      const int64_t last = range.positions - kTileRows;
      first = start < last ? start : last;
      skipped = static_cast<int>(start - first);
    }
  }

  // body(row, pixel) for each row that is a pixel of this tile's own.
  template <class Body>
  AGF_INLINE void for_pixels(const Positions& range, const Body& body) const {
    PixelIterator at(0, range.height, range.width);
    at.image = image;
    at.y = (first + skipped) / range.line;
    at.x = (first + skipped) % range.line;
    for (int row = skipped; row < kTileRows; ++row) {
      if (at.x < range.width) body(row, at);
      if (++at.x == range.line) at.x = 0, ++at.y;
    }
  }
};

// What is read of each pixel: `count` steps of `bytes` at each of the offsets. Taps of one line
// follow one another in memory, as their weights do.
struct Steps {
  int64_t offsets[9], runs, count, bytes;

  explicit Steps(const Convolve& c) {
    const int64_t tap_bytes = c.in_channels * storage_bytes(c.in.storage);
    const bool joined = c.taps == 9 && c.in_channels == c.in.channels;
    runs = joined ? 3 : c.taps;
    for (int64_t r = 0; r < runs; ++r) {
      const int64_t tap = joined ? 3 * r : r;
      offsets[r] = tap / 3 * c.in.line_bytes() + tap % 3 * c.in.pixel_bytes();
    }
    const int64_t run_bytes = joined ? 3 * tap_bytes : tap_bytes;
    count = (run_bytes + kTileBytes - 1) / kTileBytes;
    while (run_bytes % (4 * count) != 0) ++count;
    bytes = run_bytes / count;
  }
};

// sums [16 * pixels][16 * outputs], of tiles of pixels from `at` on and panels of outputs.
template <Storage storage, int pixels, int outputs>
void multiply_tiles(Tiles& tiles, const char* const (&at)[kBlock], int64_t pixel_bytes,
                    const Steps& steps, const char* weights, int64_t panel_bytes, char* sums) {
  tiles.zero<0>();
  if constexpr (outputs == 2) tiles.zero<1>();
  if constexpr (pixels == 2) tiles.zero<2>();
  if constexpr (pixels == 2 && outputs == 2) tiles.zero<3>();
  const char* const first = at[0];
  const char* const second = at[pixels - 1];
  const int64_t runs = steps.runs, count = steps.count, bytes = steps.bytes;
  for (int64_t r = 0; r < runs; ++r) {
    int64_t offset = steps.offsets[r];
    for (int64_t i = 0; i < count; ++i) {
      tiles.load<6>(weights, kTileBytes);
      tiles.load<4>(first + offset, pixel_bytes);
      tiles.dot<storage, 0, 4, 6>();
      if constexpr (outputs == 2) {
        tiles.load<7>(weights + panel_bytes, kTileBytes);
        tiles.dot<storage, 1, 4, 7>();
      }
      if constexpr (pixels == 2) {
        tiles.load<5>(second + offset, pixel_bytes);
        tiles.dot<storage, 2, 5, 6>();
        if constexpr (outputs == 2) tiles.dot<storage, 3, 5, 7>();
      }
      offset += bytes;
      weights += bytes * (kTileBytes / 4);
    }
  }
  constexpr int64_t row = outputs * kTileBytes;
  tiles.store<0>(sums, row);
  if constexpr (outputs == 2) tiles.store<1>(sums + kTileBytes, row);
  if constexpr (pixels == 2) tiles.store<2>(sums + kTileRows * row, row);
  if constexpr (pixels == 2 && outputs == 2) {
    tiles.store<3>(sums + kTileRows * row + kTileBytes, row);
  }
}

template <Storage storage>
void multiply_tiles(int pixels, int outputs, Tiles& tiles, const char* const (&at)[kBlock],
                    int64_t pixel_bytes, const Steps& steps, const char* weights,
                    int64_t panel_bytes, char* sums) {
  const auto run =
      pixels == 2    ? outputs == 2 ? multiply_tiles<storage, 2, 2> : multiply_tiles<storage, 2, 1>
      : outputs == 2 ? multiply_tiles<storage, 1, 2>
                     : multiply_tiles<storage, 1, 1>;
  run(tiles, at, pixel_bytes, steps, weights, panel_bytes, sums);
}

// int32 to float32 where they lie.
void to_floats(float* values, int count) {
  for (int i = 0; i < count; i += kWidth) {
    *reinterpret_cast<Floats*>(values + i) =
        __builtin_convertvector(*reinterpret_cast<const Ints*>(values + i), Floats);
  }
}

template <Storage storage>
void convolve_stored(const Convolve& c, const ExecutionContext& f) {
  const Positions range(c.in);
  const Steps steps(c);
  const int64_t pixel_bytes = c.in.pixel_bytes();
  const int64_t panel_bytes = c.taps * c.in_channels * storage_bytes(storage) * kLanes;
  const int64_t reach = c.taps == 9 ? 1 : 0;

  const Part mine = part_on_tiles(c, f);
  if (mine.first_row == mine.last_row || mine.first_panel == mine.last_panel) return;
  Tiles tiles(steps.bytes);
  alignas(64) float sums[kBlock * kTileRows * kBlock * kLanes];
  for (int64_t panel = mine.first_panel; panel < mine.last_panel;) {
    const int taken = mine.last_panel - panel < kBlock ? 1 : kBlock;
    for (int64_t tile = mine.first_row; tile < mine.last_row; tile += kBlock) {
      const int valid = mine.last_row - tile < kBlock ? 1 : kBlock;
      const PixelTile at[kBlock] = {{range, tile}, {range, tile + valid - 1}};
      const char* from[kBlock];
      for (int t = 0; t < valid; ++t) {
        from[t] = f.pixel(c.in, at[t].image, -reach, -reach) + at[t].first * pixel_bytes;
        at[t].for_pixels(range, [&](int, const PixelIterator& pixel) {
          prefetch(c, f, pixel, panel * kLanes, taken * kLanes);
        });
      }
      multiply_tiles<storage>(valid, taken, tiles, from, pixel_bytes, steps,
                              f.weights + c.weights + panel * panel_bytes, panel_bytes,
                              reinterpret_cast<char*>(sums));
      if constexpr (storage == Storage::u8) to_floats(sums, valid * kTileRows * taken * kLanes);
      for (int t = 0; t < valid; ++t) {
        at[t].for_pixels(range, [&](int row, const PixelIterator& pixel) {
          float* r = sums + (t * kTileRows + row) * taken * kLanes;
          epilogue(c, f, pixel, panel * kLanes, taken * kLanes, r);
        });
      }
    }
    panel += taken;
  }
}

void convolve(const Convolve& c, const ExecutionContext& f) {
  if (suits_tiles(c)) {
    return c.in.storage == Storage::bf16 ? convolve_stored<Storage::bf16>(c, f)
                                         : convolve_stored<Storage::u8>(c, f);
  }
  convolve_kernel.before(Isa::AGF_ISA)(c, f);  // float32, or no tile is full
}

const RegisterCpuKernel registered[] = {{convolve_kernel, Isa::AGF_ISA, convolve}};

}  // namespace
}  // namespace agf::AGF_ISA
