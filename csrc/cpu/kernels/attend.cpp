// Cosine self-attention over the pixels of an image (EDM2 fig. 21): a few queries at a time against
// all keys, so that their scores stay in L1 and never reach the arena. Where the map comes in bf16
// and the processor multiplies it, so are queries, keys, values and weights: all are of unit
// magnitude or below, and the sums stay in float32.
#include "attention.h"
#include "parts.h"
#include "tile.h"

namespace agf::AGF_ISA {
namespace {

// The type of the products for this map.
Storage products(const Map& qkv) {
#if defined(__AVX512BF16__)
  return qkv.storage;
#else
  (void)qkv;
  return Storage::f32;
#endif
}

template <Storage storage>
void attend_stored(const Attend& a, const ExecutionContext& f) {
  constexpr int64_t size = storage_bytes(storage), step = per_step(storage);
  const SplitHeads& s = a.from;
  const int64_t pixels = s.qkv.height * s.qkv.width;
  const int64_t blocks = blocks_of(pixels);
  const int64_t key_panels = s.pixels_stride / kLanes, value_panels = s.head_stride / kLanes;
  const int64_t row_bytes = s.pixels_stride * size;
  Tile tile;
  const Share mine = share_of(a, f);
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    const int64_t block = item % blocks, head = item / blocks % s.heads;
    const int64_t image = item / blocks / s.heads;
    const Head from(s, f, image, head, size);
    const char* at[kPixels];
    for (int p = 0; p < kPixels; ++p) {
      const int64_t pixel = block * kPixels + p < pixels ? block * kPixels + p : pixels - 1;
      at[p] = from.q + pixel * s.head_stride * size;
    }
    float sums[kPixels] = {};
    for (int64_t panel = 0; panel < key_panels;) {
      const int taken = next_panels(key_panels - panel);
      const int64_t count = taken * kLanes, valid = pixels - panel * kLanes;
      multiply<storage>(taken, at, OneTap{}, s.head_stride * size,
                        from.k + panel * kLanes * s.head_stride * size, kLanes * 4,
                        kLanes * s.head_stride * size, tile.sums);
      for (int p = 0; p < kPixels; ++p) {
        exponentials<storage>(tile.sums + p * count, count, valid < count ? valid : count,
                              f.scratch + p * row_bytes + panel * kLanes * size, sums + p);
      }
      panel += taken;
    }
    for (int p = 0; p < kPixels; ++p) at[p] = f.scratch + p * row_bytes;
    for (int64_t panel = 0; panel < value_panels;) {
      const int taken = next_panels(value_panels - panel);
      multiply<storage>(taken, at, OneTap{}, (pixels + step - 1) / step * 4,
                        from.v + panel * kLanes * 4, s.head_stride * 4, kLanes * 4, tile.sums);
      PixelIterator pixel(block * kPixels, s.qkv.height, s.qkv.width);
      for (int p = 0; p < kPixels && block * kPixels + p < pixels; ++p, pixel.next()) {
        float* y = tile.sums + p * taken * kLanes;
        const float inverse = 1 / sums[p];
        AGF_VECTORISE
        for (int64_t c = 0; c < taken * kLanes; ++c) y[c] *= inverse;
        put(y,
            f.pixel(a.out, image, pixel.y, pixel.x) +
                (head * s.head_stride + panel * kLanes) * storage_bytes(a.out.storage),
            taken * kLanes, a.out);
      }
      panel += taken;
    }
  }
}

void split_heads(const SplitHeads& s, const ExecutionContext& f) {
  if (products(s.qkv) == Storage::bf16) return split_heads_stored<Storage::bf16>(s, f);
  split_heads_stored<Storage::f32>(s, f);
}

void attend(const Attend& a, const ExecutionContext& f) {
  if (a.from.temperature == 0) {
    if (products(a.from.qkv) == Storage::bf16) return copy_values<Storage::bf16>(a, f);
    return copy_values<Storage::f32>(a, f);
  }
  if (products(a.from.qkv) == Storage::bf16) return attend_stored<Storage::bf16>(a, f);
  attend_stored<Storage::f32>(a, f);
}

const RegisterCpuKernel registered[] = {
    {split_heads_kernel, Isa::AGF_ISA, split_heads},
    {attend_kernel, Isa::AGF_ISA, attend},
};

}  // namespace
}  // namespace agf::AGF_ISA
