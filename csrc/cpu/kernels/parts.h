// How the threads of a team share an instruction: the one place that says so. The loops take what
// is theirs from here, and parts.cpp tells how even it is.
#pragma once
#include "cpu/engine_kernels.h"
#include "tile.h"

namespace agf::AGF_ISA {

AGF_INLINE int64_t pixels_of(const Map& map) { return map.height * map.width; }
AGF_INLINE int64_t blocks_of(int64_t pixels) { return (pixels + kPixels - 1) / kPixels; }
AGF_INLINE const Map& result_of(const Convolve& c) { return c.out ? c.out : c.act; }
AGF_INLINE const Map& result_of(const BlockPrologue& e) {
  return e.main ? e.main : e.act ? e.act : e.raw;
}

// Pixels.
AGF_INLINE Share share_of(const Load& l, const ExecutionContext& f) {
  return Share(f.images * pixels_of(l.out), f);
}
AGF_INLINE Share share_of(const BlockPrologue& e, const ExecutionContext& f) {
  return Share(f.images * pixels_of(result_of(e)), f);
}
AGF_INLINE Share share_of(const Store& s, const ExecutionContext& f) {
  return Share(f.images * pixels_of(s.in), f);
}
// 16 pixels of a head, image by image.
AGF_INLINE Share share_of(const SplitHeads& s, const ExecutionContext& f) {
  return Share(f.images * s.heads * (s.pixels_stride / kLanes), f);
}
// Blocks of pixels of a head; pixels where there is nothing to multiply.
AGF_INLINE Share share_of(const Attend& a, const ExecutionContext& f) {
  const int64_t pixels = pixels_of(a.from.qkv);
  const int64_t each = a.from.temperature == 0 ? pixels : blocks_of(pixels);
  return Share(f.images * a.from.heads * each, f);
}

// All tiles of a team's images.
AGF_INLINE int64_t tiles_of(const Convolve& c, const ExecutionContext& f) {
  return f.images * (c.in.height / c.winograd) * (c.in.width / c.winograd);
}

// A thread's part of a convolution: some rows, which are blocks of pixels or Winograd's tiles, for
// some panels of outputs.
struct Part {
  int64_t first_row, last_row, first_panel, last_panel;
};

// Part number `thread` of a grid of `across` times `down` for rows and panels; none for threads
// past the last.
AGF_INLINE Part part_of_grid(int64_t rows, int64_t panels, int64_t across, int64_t down,
                             int64_t thread) {
  if (thread >= across * down) return {0, 0, 0, 0};
  const int64_t row = thread % across, panel = thread / across;
  return {rows * row / across, rows * (row + 1) / across, panels * panel / down,
          panels * (panel + 1) / down};
}

// What a part costs, in products of one row and one panel: what each row needs beside, as reading
// or transforming its input for all panels, and each panel, as transforming its weights.
struct Costs {
  double row, panel;
};

// Splits by panels where `by_panels`, else by rows; by both where that leaves the longest part at
// least a tenth shorter.
AGF_INLINE Part split(int64_t rows, int64_t panels, Costs costs, bool by_panels,
                      const ExecutionContext& f) {
  const auto longest = [&](int64_t across, int64_t down) {
    const int64_t r = (rows + across - 1) / across, p = (panels + down - 1) / down;
    return r * (p + costs.row) + p * costs.panel;
  };
  int64_t across = by_panels ? 1 : f.threads, down = by_panels ? f.threads : 1;
  double best = 0.9 * longest(across, down);
  for (int64_t a = 2; 2 * a <= f.threads; ++a) {
    const double cost = longest(a, f.threads / a);
    if (cost < best) best = cost, across = a, down = f.threads / a;
  }
  return part_of_grid(rows, panels, across, down, f.thread);
}

// A direct convolution's, in rows of `pixels` pixels.
AGF_INLINE Part direct_part(const Convolve& c, const ExecutionContext& f) {
  const int64_t panels = result_of(c).channels / kLanes;
  const int64_t blocks = blocks_of(f.images * pixels_of(c.in));
  return split(blocks, panels, {1, 0}, split_channels(c, f, blocks, panels), f);
}

// Winograd's with packed weights, in rows of tiles.
AGF_INLINE Part packed_part(const Convolve& c, const ExecutionContext& f) {
  const int64_t panels = result_of(c).channels / kLanes, tiles = tiles_of(c, f);
  return split(tiles, panels, {1, 0}, split_channels(c, f, blocks_of(tiles), panels), f);
}

// Winograd's that transforms weights as it goes, which costs as much as seven tiles. By output
// channels where there are few tiles: each thread then transforms only its own weights, but all of
// the input.
AGF_INLINE Part transforming_part(const Convolve& c, const ExecutionContext& f) {
  const int64_t panels = result_of(c).channels / kLanes, tiles = tiles_of(c, f);
  const bool by_panels = f.threads > 1 && panels >= f.threads && tiles <= WinogradLayout(c).tiles &&
                         2 * tiles < panels * kLanes;
  return split(tiles, panels, {1, 7}, by_panels, f);
}

AGF_INLINE Part part_of(const Convolve& c, const ExecutionContext& f) {
  return c.winograd == Convolve::direct  ? direct_part(c, f)
         : c.in.storage == Storage::bf16 ? packed_part(c, f)
                                         : transforming_part(c, f);
}

}  // namespace agf::AGF_ISA
