// The epilogue of a convolution, while its sums are in L1: scales of int8, modulation and MP-SiLU,
// or the sum with the main path and the clip; then they are stored, once. Each of these
// would otherwise read and write the whole feature map again.
#pragma once
#include "approximate.h"
#include "mp_silu.h"
#include "mp_sum.h"
#include "storage.h"

namespace agf::AGF_ISA {

// r [count] are the sums of channels [begin, begin + count) at one pixel; overwritten.
template <int count>
void epilogue_of(const Convolve& c, const ExecutionContext& f, const PixelIterator& at,
                 int64_t begin, float* r) {
  if (c.dequantise >= 0) {
    const int64_t channels = (c.out ? c.out : c.act).channels;
    const float* scale = reinterpret_cast<const float*>(f.weights + c.dequantise) + begin;
    const float* shift = scale + channels;
    AGF_VECTORISE
    for (int j = 0; j < count; ++j) r[j] = (r[j] - shift[j]) * scale[j];
  }
  if (c.modulation >= 0) {
    const float* m = f.modulations + at.image * f.modulation_stride + c.modulation + begin;
    if (c.act.storage == Storage::f32) {
      AGF_VECTORISE
      for (int j = 0; j < count; ++j) r[j] = mp_silu(r[j] * m[j]);
    } else {
      AGF_VECTORISE
      for (int j = 0; j < count; ++j) r[j] *= m[j];
      approximate_mp_silu(r, count);
    }
  }
  if (c.sum) {
    const float* s = reinterpret_cast<const float*>(f.pixel(c.sum, at.image, at.y, at.x)) + begin;
    const float weight = c.sum_weight, limit = c.limit;
    AGF_VECTORISE
    for (int j = 0; j < count; ++j) r[j] = clip(r[j] + weight * s[j], limit);
  }
  for (const Map* map : {&c.out, &c.act}) {
    if (!*map) continue;
    put(r, f.pixel(*map, at.image, at.y, at.x) + begin * storage_bytes(map->storage), count, *map);
    if (at.x == 0) clear_border(f, *map, at.image, at.y, begin, count);
  }
}

// Prefetches what the epilogue of these channels will read and write, while the sums are computed.
inline void prefetch(const Convolve& c, const ExecutionContext& f, const PixelIterator& at,
                     int64_t begin, int64_t count) {
  for (const Map* map : {&c.sum, &c.out, &c.act}) {
    if (!*map) continue;
    const char* stored = f.pixel(*map, at.image, at.y, at.x) + begin * storage_bytes(map->storage);
    const int64_t bytes = count * storage_bytes(map->storage);
    for (int64_t byte = 0; byte < bytes; byte += 64) {
      if (map == &c.sum) {
        __builtin_prefetch(stored + byte, 0);
      } else {
        __builtin_prefetch(stored + byte, 1);
      }
    }
  }
}

// The epilogue of one to three panels of channels, each in loops of constant length.
inline void epilogue(const Convolve& c, const ExecutionContext& f, const PixelIterator& at,
                     int64_t begin, int64_t count, float* r) {
  if (count == 3 * kLanes) return epilogue_of<3 * kLanes>(c, f, at, begin, r);
  if (count == 2 * kLanes) return epilogue_of<2 * kLanes>(c, f, at, begin, r);
  epilogue_of<kLanes>(c, f, at, begin, r);
}

}  // namespace agf::AGF_ISA
