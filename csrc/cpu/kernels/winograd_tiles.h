// What Winograd's convolutions are made of, in the engine and in training: the transforms of tiles,
// the products at each point, and the loop over both. A convolution gives it a policy (the tile and
// the types), a source of windows, a way to multiply with its weights, and a sink for results.
#pragma once
#include "storage.h"
#include "tile.h"
#include "winograd.h"

namespace agf::AGF_ISA {

// F: the tile and its transforms. `stored`: the type of images and results in memory; `factors`:
// the type of what is multiplied. Sums are float32.
template <class F, Storage stored, Storage factors>
struct WinogradPolicy : F {
  using F::kTile, F::kWindow;
  static constexpr Storage kStored = stored, kFactors = factors;
  static constexpr int kPoints = kWindow * kWindow;
  static constexpr int kStoredBytes = storage_bytes(stored), kFactorBytes = storage_bytes(factors);
  static constexpr int kStep = 4 / kFactorBytes;  // factors that a product takes at once
};

// A matrix for each point, `stride` bytes from one to the next.
struct PointMatrices {
  char* data;
  int64_t stride;
  char* operator[](int point) const { return data + point * stride; }
};

// Tiles [first, first + count) of images of `down` times `across` tiles.
struct TileRange {
  int64_t first, count, down, across;
  PixelIterator begin() const { return PixelIterator(first, down, across); }
};

// Where the values of a tile are: lines and pixels at fixed distances, in bytes.
struct StridedWindow {
  const char* corner;
  int64_t line, pixel;
  const char* operator()(int i, int j) const { return corner + i * line + j * pixel; }
};

// The same in matrices of points, of `window` times `window`.
template <int window>
struct PointWindow {
  const char* corner;
  int64_t stride;
  const char* operator()(int i, int j) const { return corner + (i * window + j) * stride; }
};

// store(i, j, value) for T load(i, j) T^T: first down the columns, then along the rows. Inlined, or
// values would pass through memory.
template <class Transform, class Load, class Store>
AGF_INLINE void transform_square(const Load& load, const Store& store) {
  constexpr int from = Transform::kFrom, to = Transform::kTo;
  Floats half[to][from];
#pragma GCC unroll 8
  for (int j = 0; j < from; ++j) {
    Floats column[from];
#pragma GCC unroll 8
    for (int i = 0; i < from; ++i) column[i] = load(i, j);
    Transform::line(column, &half[0][j], from);
  }
#pragma GCC unroll 8
  for (int i = 0; i < to; ++i) {
    Floats row[to];
    Transform::line(half[i], row, 1);
#pragma GCC unroll 8
    for (int j = 0; j < to; ++j) store(i, j, row[j]);
  }
}

// store(point, packed): four bytes for each lane, at each point of kStep tiles or inputs, of which
// transform(e, store(i, j, value)) transforms number e.
template <class P, class Transform, class Store>
inline void pack_points(const Transform& transform, const Store& store) {
  Floats points[P::kStep][P::kPoints];
#pragma GCC unroll 2
  for (int e = 0; e < P::kStep; ++e) {
    transform(e, [&](int i, int j, Floats value) { points[e][i * P::kWindow + j] = value; });
  }
  for (int i = 0; i < P::kPoints; ++i) {
    store(i, pack_stored<P::kFactors>(points[0][i], points[P::kStep - 1][i]));
  }
}

// Transforms tiles, `group` at a time, kWidth channels at a time. source(at, tile, valid) is where
// the values of tile number `tile` of the range, at `at` among its image's, are; those that fill up
// the last group are not valid, and zeros stand for them. sink(at, tile, c, transform) is called
// for the first of each group, and has number e of it from transform(e, store(i, j, value)).
template <class Transform, Storage storage, int group, class Source, class Sink>
inline void transform_tiles(const TileRange& tiles, int64_t channels, Source source, Sink sink) {
  PixelIterator at = tiles.begin();
  for (int64_t tile = 0; tile < tiles.count; tile += group) {
    const PixelIterator first = at;
    decltype(source(at, tile, true)) windows[group] = {};
    for (int e = 0; e < group; ++e, at.next()) {
      windows[e] = source(at, tile + e, group == 1 || tile + e < tiles.count);
    }
    for (int64_t c = 0; c < channels; c += kWidth) {
      sink(first, tile, c, [&](int e, const auto& store) {
        transform_square<Transform>(
            [&](int i, int j) {
              return load_floats<storage>(windows[e](i, j) + c * storage_bytes(storage));
            },
            store);
      });
    }
  }
}

// One round of a convolution: the transformed inputs of its tiles, V [points][tiles][channels], and
// what the products of `taken` panels of outputs from `panel` on are to be, M
// [points][tiles][taken * 16] in float32.
struct Products {
  PointMatrices v, m;
  int64_t tiles, channels, panel;
  int taken;
};

// M = or += V U at one point, for input channels [begin, begin + inputs). U has `step` bytes from
// each four bytes of input to the next, `panel_bytes` from panel to panel.
template <class P, bool add = false>
inline void multiply_point(const Products& r, int point, int64_t begin, int64_t inputs,
                           const char* u, int64_t step, int64_t panel_bytes) {
  const int64_t row = r.channels * P::kFactorBytes, bytes = inputs * P::kFactorBytes;
  const char* v = r.v[point] + begin * P::kFactorBytes;
  auto* m = reinterpret_cast<float*>(r.m[point]);
  for (int64_t tile = 0; tile < r.tiles; tile += kPixels) {
    const StridedRows rows{v + tile * row, row};
    float* sums = m + tile * r.taken * kLanes;
    if (r.tiles - tile > kPixels / 2) {
      multiply<P::kFactors, 4, kPixels, add>(r.taken, rows, OneTap{}, bytes, u, step, panel_bytes,
                                             sums);
    } else {
      multiply<P::kFactors, 4, kPixels / 2, add>(r.taken, rows, OneTap{}, bytes, u, step,
                                                 panel_bytes, sums);
    }
  }
}

// Weights that are transformed already, packed for the tile: `point` bytes from one point's to the
// next, `panel` from one panel's.
template <class P>
struct PackedWeights {
  const char* data;
  int64_t point, panel;

  void multiply_all(const Products& r) const {
    for (int i = 0; i < P::kPoints; ++i) {
      multiply_point<P>(r, i, 0, r.channels, data + i * point + r.panel * panel, kLanes * 4, panel);
    }
  }
};

// A convolution of `tiles`, at most `most` at a time, with panels [first_panel, last_panel) of
// outputs. `v` and `products` are memory for `most` tiles. sink(at, first, width, c, transform) has
// the results of output channels first + [c, c + kWidth), of `width` that follow one another, from
// transform(0, store(i, j, value)).
template <class P, class Source, class Weights, class Sink>
inline void convolve_tiles(const TileRange& tiles, int64_t most, int64_t channels,
                           int64_t first_panel, int64_t last_panel, PointMatrices v, char* products,
                           Source source, const Weights& weights, Sink sink) {
  const int64_t row = channels * P::kFactorBytes;
  TileRange round = tiles;
  for (int64_t left = tiles.count; left > 0; left -= round.count, round.first += round.count) {
    round.count = left < most ? left : most;
    transform_tiles<typename P::Input, P::kStored, 1>(
        round, channels, source,
        [v, row](const PixelIterator&, int64_t tile, int64_t c, const auto& transform) {
          char* to = v.data + tile * row + c * P::kFactorBytes;
          const auto store = [&](int point, Floats value) {
            store_floats<P::kFactors>(value, to + point * v.stride);
          };
          if constexpr (P::kFactors == Storage::f32) {
            transform(0, [&](int i, int j, Floats value) { store(i * P::kWindow + j, value); });
          } else {  // in a loop, as each takes many instructions
            Floats points[P::kPoints];
            transform(0, [&](int i, int j, Floats value) { points[i * P::kWindow + j] = value; });
            for (int i = 0; i < P::kPoints; ++i) store(i, points[i]);
          }
        });
    for (int64_t panel = first_panel; panel < last_panel;) {
      const int taken = next_panels(last_panel - panel);
      const int64_t width = taken * kLanes;
      const PointMatrices m{products, most * width * 4 + kPointPadding};
      weights.multiply_all({v, m, round.count, channels, panel, taken});
      transform_tiles<typename P::Output, Storage::f32, 1>(
          round, width,
          [m, width](const PixelIterator&, int64_t tile, bool) {
            return PointWindow<P::kWindow>{m.data + tile * width * 4, m.stride};
          },
          [sink, panel, width](const PixelIterator& at, int64_t, int64_t c, const auto& transform) {
            sink(at, panel * kLanes, width, c, transform);
          });
      panel += taken;
    }
  }
}

}  // namespace agf::AGF_ISA
