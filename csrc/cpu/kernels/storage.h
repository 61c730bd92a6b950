// Writes a run of floats into a map, in the type that the map stores, and the border around its
// pixels.
#pragma once
#include <cstring>

#include "cpu/chunks.h"
#include "engine/plan.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace agf::AGF_ISA {

// `count` values, a multiple of kLanes, rounded to u8 and clipped to its range.
inline void put_u8(const float* values, char* to, int64_t count, const Map& map) {
  const float inverse = 1 / map.scale;
#if defined(__AVX512F__)
  const __m512 factor = _mm512_set1_ps(inverse), zero = _mm512_set1_ps(map.zero);
  for (int64_t j = 0; j < count; j += kLanes) {
    const __m512 stored = _mm512_fmadd_ps(_mm512_loadu_ps(values + j), factor, zero);
    const __m512i positive = _mm512_max_epi32(_mm512_cvtps_epi32(stored), _mm512_setzero_si512());
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + j), _mm512_cvtusepi32_epi8(positive));
  }
#else
  auto* out = reinterpret_cast<unsigned char*>(to);
  const float shift = map.zero + 0.5f;
  AGF_VECTORISE
  for (int64_t j = 0; j < count; ++j) {
    float storage = values[j] * inverse + shift;
    storage = storage < 255.0f ? storage : 255.0f;
    storage = storage > 0.0f ? storage : 0.0f;
    out[j] = static_cast<unsigned char>(static_cast<int>(storage));
  }
#endif
}

// `count` values, a multiple of kLanes, to the address `to` in a map of this storage type.
inline void put(const float* values, char* to, int64_t count, const Map& map) {
  switch (map.storage) {
    case Storage::f32: std::memcpy(to, values, count * 4); break;
    case Storage::bf16: narrow(values, reinterpret_cast<bf16*>(to), static_cast<int>(count)); break;
    case Storage::u8: put_u8(values, to, count, map);
  }
}

// Sets the border next to line `y` to what stands for zero, for channels [begin, begin + count).
inline void clear_border(const ExecutionContext& f, const Map& map, int64_t image, int64_t y,
                         int64_t begin, int64_t count) {
  if (!map || map.border == 0) return;
  const int64_t size = storage_bytes(map.storage);
  const int zero = map.storage == Storage::u8 ? static_cast<int>(map.zero) : 0;
  const auto clear = [&](int64_t line, int64_t x) {
    std::memset(f.pixel(map, image, line, x) + begin * size, zero, count * size);
  };
  clear(y, -1);
  clear(y, map.width);
  for (const int64_t line : {int64_t{-1}, map.height}) {
    if (line == -1 ? y != 0 : y != map.height - 1) continue;
    for (int64_t x = -1; x <= map.width; ++x) clear(line, x);
  }
}

// The pixels of all images, or their tiles, line by line.
struct PixelIterator {
  int64_t image, y, x, height, width;
  PixelIterator(int64_t pixel, int64_t h, int64_t w)
      : image(pixel / w / h), y(pixel / w % h), x(pixel % w), height(h), width(w) {}
  void next() {
    if (++x < width) return;
    x = 0;
    if (++y < height) return;
    y = 0;
    ++image;
  }
};

}  // namespace agf::AGF_ISA
