// What an attention has around its two products, whatever multiplies them: queries, keys and values
// as these read them, and the softmax's exponentials. `storage` is the type of the products.
#pragma once
#include "approximate.h"
#include "cpu/engine_kernels.h"
#include "normalize.h"
#include "parts.h"
#include "storage.h"

namespace agf::AGF_ISA {

constexpr int64_t per_step(Storage storage) { return 4 / storage_bytes(storage); }

// What the tile's steps of four bytes read: queries [pixels][channels], keys in panels of 16
// [panels][channels / per_step][16][per_step], values [pixels / per_step][channels][per_step].
struct Head {
  char *q, *k, *v;
  Head(const SplitHeads& s, const ExecutionContext& f, int64_t image, int64_t head, int64_t size) {
    char* base = f.arena + image * f.image_bytes;
    const int64_t pixels = s.qkv.height * s.qkv.width, step = 4 / size;
    q = base + s.q + head * pixels * s.head_stride * size;
    k = base + s.k + head * s.head_stride * s.pixels_stride * size;
    v = base + s.v + head * ((pixels + step - 1) / step) * s.head_stride * 4;
  }
};

// Four bytes as they are stored: a float, or two neighbours in bf16.
template <Storage storage>
std::int32_t packed(const float* first, [[maybe_unused]] const float* second) {
  if constexpr (storage == Storage::f32) {
    return static_cast<std::int32_t>(bits_of(*first));
  } else {
    bf16 low, high;
    narrow(*first, &low);
    narrow(*second, &high);
    return static_cast<std::int32_t>(std::uint32_t(high.bits) << 16 | low.bits);
  }
}

template <Storage storage>
void split_heads_stored(const SplitHeads& s, const ExecutionContext& f) {
  constexpr int64_t size = storage_bytes(storage), step = per_step(storage);
  const int64_t pixels = s.qkv.height * s.qkv.width, stride = s.head_stride;
  const int64_t part_bytes = s.heads * stride * storage_bytes(s.qkv.storage);
  // Attention's scale is made part of the queries.
  const float root = square_root(static_cast<float>(s.head_channels));
  const float scale = s.temperature > 0 ? 1 / (root * s.temperature) : 0;
  float* rows[3];  // of 16 pixels: q, k, v
  for (int part = 0; part < 3; ++part) {
    rows[part] = reinterpret_cast<float*>(f.scratch) + part * kLanes * stride;
  }
  const Share mine = share_of(s, f);
  const int64_t groups = s.pixels_stride / kLanes;
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    const int64_t first = item % groups * kLanes, head = item / groups % s.heads;
    const int64_t image = item / groups / s.heads;
    const Head to(s, f, image, head, size);
    const char* from = f.pixel(s.qkv, image, 0, 0) + head * stride * storage_bytes(s.qkv.storage);
    const int64_t valid = first + kLanes <= pixels ? int64_t{kLanes} : pixels - first;
    for (int64_t p = 0; p < kLanes; ++p) {
      for (int part = 0; part < 3; ++part) {
        float* row = rows[part] + p * stride;
        if (p >= valid) {
          std::memset(row, 0, stride * 4);
          continue;
        }
        const char* stored = from + (first + p) * s.qkv.pixel_bytes() + part * part_bytes;
        if (s.qkv.storage == Storage::f32) {
          std::memcpy(row, stored, stride * 4);
        } else {
          const auto* narrow_stored = reinterpret_cast<const bf16*>(stored);
          AGF_VECTORISE
          for (int64_t c = 0; c < stride; ++c) row[c] = widen(narrow_stored[c]);
        }
        const float squares = sum_of_squares(row, static_cast<int>(stride));
        float factor = normalize_factor(squares, static_cast<float>(s.head_channels), kEps);
        if (part == 0) factor *= scale;
        AGF_VECTORISE
        for (int64_t c = 0; c < stride; ++c) row[c] *= factor;
      }
    }
    Map queries;
    queries.storage = storage;
    for (int64_t p = 0; p < valid; ++p) {
      put(rows[0] + p * stride, to.q + (first + p) * stride * size, stride, queries);
    }
    auto* k_to = reinterpret_cast<std::int32_t*>(to.k + first * stride * size);
    for (int64_t c = 0; c < stride; c += step) {
      for (int64_t p = 0; p < kLanes; ++p) {
        const float* k = rows[1] + p * stride + c;
        *k_to++ = packed<storage>(k, k + step - 1);
      }
    }
    for (int64_t p = 0; p < valid; p += step) {
      const float *v = rows[2] + p * stride, *next = rows[2] + (p + step - 1) * stride;
      auto* v_to = reinterpret_cast<std::int32_t*>(to.v + (first + p) / step * stride * 4);
      AGF_VECTORISE
      for (int64_t c = 0; c < stride; ++c) v_to[c] = packed<storage>(v + c, next + c);
    }
  }
}

// Exponentials of a tile's scores, to the rows of weights; adds them to `sums`. Queries and keys
// have unit magnitude, so that no score exceeds sqrt(head_channels): no maximum is subtracted.
template <Storage storage>
void exponentials(float* scores, int64_t count, int64_t valid, char* row, float* sum) {
  float total = 0;
  if (valid == count) {
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < count; ++i) {
      scores[i] = storage == Storage::f32 ? exp(scores[i]) : approximate_exp(scores[i]);
      total += scores[i];
    }
  } else {  // keys past the last do not count
    for (int64_t i = 0; i < count; ++i) {
      scores[i] = i < valid ? exp(scores[i]) : 0;
      total += scores[i];
    }
  }
  *sum += total;
  Map weights;
  weights.storage = storage;
  put(scores, row, count, weights);
}

// Attention that is the identity: the values, as they are.
template <Storage storage>
void copy_values(const Attend& a, const ExecutionContext& f) {
  constexpr int64_t size = storage_bytes(storage), step = per_step(storage);
  const SplitHeads& s = a.from;
  const int64_t pixels = s.qkv.height * s.qkv.width;
  auto* row = reinterpret_cast<float*>(f.scratch);
  const Share mine = share_of(a, f);
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    const int64_t p = item % pixels, head = item / pixels % s.heads;
    const int64_t image = item / pixels / s.heads;
    const Head from(s, f, image, head, size);
    const char* v = from.v + p / step * s.head_stride * 4 + p % step * size;
    for (int64_t c = 0; c < s.head_stride; ++c, v += 4) {
      if constexpr (storage == Storage::f32) {
        std::memcpy(row + c, v, 4);
      } else {
        bf16 value;
        std::memcpy(&value, v, 2);
        row[c] = widen(value);
      }
    }
    const PixelIterator pixel(p, s.qkv.height, s.qkv.width);
    put(row,
        f.pixel(a.out, image, pixel.y, pixel.x) +
            head * s.head_stride * storage_bytes(a.out.storage),
        s.head_stride, a.out);
  }
}

}  // namespace agf::AGF_ISA
