// Cosine self-attention over the pixels of an image (EDM2 fig. 21): a few queries at a time against
// all keys, so that their scores stay in L1 and never reach the arena.
#include <cmath>

#include "cells.h"
#include "cpu/engine_kernels.h"
#include "normalize.h"
#include "tile.h"

namespace agf::AGF_ISA {
namespace {

constexpr float kEps = 1e-4f;  // of the normalisation of queries, keys and values (EDM2 eq. 30)

struct Head {
  float *q, *k, *v;
  Head(const SplitHeads& s, const Frame& f, int64_t image, int64_t head) {
    char* base = f.arena + image * f.image_bytes;
    const int64_t pixels = s.qkv.height * s.qkv.width;
    q = reinterpret_cast<float*>(base + s.q) + head * pixels * s.head_stride;
    k = reinterpret_cast<float*>(base + s.k) + head * s.head_stride * s.pixels_stride;
    v = reinterpret_cast<float*>(base + s.v) + head * pixels * s.head_stride;
  }
};

void split_heads(const SplitHeads& s, const Frame& f) {
  const int64_t pixels = s.qkv.height * s.qkv.width;
  const int64_t part_stride = s.heads * s.head_stride;
  // Attention's scale is made part of the queries.
  const float scale = 1 / square_root(static_cast<float>(s.head_channels));
  const Share mine(f.images * s.heads, f);
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    const int64_t image = item / s.heads, head = item % s.heads;
    const Head to(s, f, image, head);
    const auto* from = reinterpret_cast<const float*>(f.pixel(s.qkv, image, 0, 0)) + head * s.head_stride;
    for (int64_t pixel = 0; pixel < pixels; ++pixel, from += 3 * part_stride) {
      const auto factor = [&](const float* part) {
        const float squares = sum_of_squares(part, static_cast<int>(s.head_stride));
        return normalize_factor(squares, static_cast<float>(s.head_channels), kEps);
      };
      const float *q = from, *k = from + part_stride, *v = from + 2 * part_stride;
      const float q_factor = factor(q) * scale, k_factor = factor(k), v_factor = factor(v);
      float* q_to = to.q + pixel * s.head_stride;
      float* v_to = to.v + pixel * s.head_stride;
      float* k_to = to.k + pixel;
      AGF_VECTORISE
      for (int64_t c = 0; c < s.head_stride; ++c) {
        q_to[c] = q[c] * q_factor;
        v_to[c] = v[c] * v_factor;
      }
      for (int64_t c = 0; c < s.head_stride; ++c) k_to[c * s.pixels_stride] = k[c] * k_factor;
    }
    for (int64_t c = 0; c < s.head_stride; ++c) {
      for (int64_t i = pixels; i < s.pixels_stride; ++i) to.k[c * s.pixels_stride + i] = 0;
    }
  }
}

void attend(const Attend& a, const Frame& f) {
  const SplitHeads& s = a.from;
  const int64_t pixels = s.qkv.height * s.qkv.width;
  const int64_t blocks = (pixels + kPixels - 1) / kPixels;
  float* scores = reinterpret_cast<float*>(f.scratch);  // [kPixels][pixels_stride]
  const int64_t no_tap = 0;
  Tile tile;
  const Share mine(f.images * s.heads * blocks, f);
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    const int64_t block = item % blocks, head = item / blocks % s.heads;
    const int64_t image = item / blocks / s.heads;
    const Head from(s, f, image, head);
    const char* at[kPixels];
    for (int p = 0; p < kPixels; ++p) {
      const int64_t pixel = block * kPixels + p < pixels ? block * kPixels + p : pixels - 1;
      at[p] = reinterpret_cast<const char*>(from.q + pixel * s.head_stride);
    }
    const int64_t key_panels = s.pixels_stride / kLanes;
    for (int64_t panel = 0; panel < key_panels;) {
      const int taken = next_panels(key_panels - panel);
      multiply<Cell::f32>(taken, at, &no_tap, 1, s.head_stride * 4,
                          reinterpret_cast<const char*>(from.k + panel * kLanes),
                          s.pixels_stride * 4, kLanes * 4, tile.sums);
      for (int p = 0; p < kPixels; ++p) {
        std::memcpy(scores + p * s.pixels_stride + panel * kLanes, tile.sums + p * taken * kLanes,
                    taken * kLanes * 4);
      }
      panel += taken;
    }
    // Queries and keys have unit magnitude, so that no score exceeds sqrt(head_channels): their
    // exponentials need no maximum subtracted. Keys past the last do not count.
    float inverse[kPixels];
    for (int p = 0; p < kPixels; ++p) {
      float* row = scores + p * s.pixels_stride;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < pixels; ++i) {
        row[i] = exp(row[i]);
        sum += row[i];
      }
      inverse[p] = 1 / sum;
      at[p] = reinterpret_cast<const char*>(row);
    }
    const int64_t value_panels = s.head_stride / kLanes;
    for (int64_t panel = 0; panel < value_panels;) {
      const int taken = next_panels(value_panels - panel);
      multiply<Cell::f32>(taken, at, &no_tap, 1, pixels * 4,
                          reinterpret_cast<const char*>(from.v + panel * kLanes), s.head_stride * 4,
                          kLanes * 4, tile.sums);
      Walk pixel(block * kPixels, s.qkv.height, s.qkv.width);
      for (int p = 0; p < kPixels && block * kPixels + p < pixels; ++p, pixel.next()) {
        float* y = tile.sums + p * taken * kLanes;
        AGF_VECTORISE
        for (int64_t c = 0; c < taken * kLanes; ++c) y[c] *= inverse[p];
        put(y, f.pixel(a.out, image, pixel.y, pixel.x) +
                   (head * s.head_stride + panel * kLanes) * cell_bytes(a.out.cell),
            taken * kLanes, a.out);
      }
      panel += taken;
    }
  }
}

const RegisterCpuKernel registered[] = {
    {split_heads_kernel, Isa::AGF_ISA, split_heads},
    {attend_kernel, Isa::AGF_ISA, attend},
};

}  // namespace
}  // namespace agf::AGF_ISA
