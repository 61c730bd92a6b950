// How the threads of a team share what runs on tiles; the rest is shared as parts.h says. The loops
// take what is theirs from here, and parts.cpp tells how even it is.
#pragma once
#include "cpu/kernels/parts.h"
#include "tile.h"

namespace agf::AGF_ISA {

// The rows of a tile are 16 neighbours in an image's lines, put one after the other with the border
// between them. Where a line has whole tiles they keep to the lines, else they also cover what
// stands between two lines, and those results are dropped; the last one of an image then ends with
// its last pixel, and leaves out what the one before had.
struct Positions {
  int64_t height, width, line;  // line: positions from one line to the next
  bool by_line;
  int64_t positions, per_image;  // per_image: tiles

  AGF_INLINE explicit Positions(const Map& map)
      : height(map.height),
        width(map.width),
        line(map.width + 2 * map.border),
        by_line(map.width % kTileRows == 0),
        positions(map.height * line - 2 * map.border),
        per_image(by_line ? height * width / kTileRows : (positions + kTileRows - 1) / kTileRows) {}
};

// Direct ones of narrow types, of maps that fill a tile.
AGF_INLINE bool suits_tiles(const Convolve& c) {
  return c.winograd == Convolve::direct && c.in.storage != Storage::f32 &&
         Positions(c.in).positions >= kTileRows;
}

// In rows of tiles, each of which costs a product for each panel, however many of its pixels count.
// A thread takes two at a time, and one where it has an odd number.
AGF_INLINE Part part_on_tiles(const Convolve& c, const ExecutionContext& f) {
  const int64_t tiles = f.images * Positions(c.in).per_image;
  const int64_t panels = result_of(c).channels / kLanes;
  return split(tiles, panels, {1, 0}, split_channels(c, f, tiles, panels), f);
}

// Of whole tiles of pixels, as all maps are whose sides 4 divides.
AGF_INLINE bool suits_tiles(const SplitHeads& s) {
  return s.qkv.storage == Storage::bf16 && pixels_of(s.qkv) % kTileRows == 0;
}

// Tiles of queries of a head; where there is nothing to multiply `share_of` says it.
AGF_INLINE Share share_on_tiles(const Attend& a, const ExecutionContext& f) {
  return Share(f.images * a.from.heads * (pixels_of(a.from.qkv) / kTileRows), f);
}

}  // namespace agf::AGF_ISA
