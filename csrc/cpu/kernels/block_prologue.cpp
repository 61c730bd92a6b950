// The prologue of a block in one pass: resampling, concatenation, pixel norm, MP-SiLU, and the
// borders that the next convolution reads. The textbook makes up to five passes of it.
#include "approximate.h"
#include "cpu/engine_kernels.h"
#include "mp_silu.h"
#include "normalize.h"
#include "parts.h"
#include "storage.h"

namespace agf::AGF_ISA {
namespace {

// values = weight * resample(map) at one pixel of the resampled map.
void gather(const ExecutionContext& f, const Map& map, Resample resample, float weight,
            const PixelIterator& at, float* values) {
  const auto source = [&](int64_t y, int64_t x) {
    return reinterpret_cast<const float*>(f.pixel(map, at.image, y, x));
  };
  if (resample == Resample::down) {
    const float* a = source(2 * at.y, 2 * at.x);
    const float* b = source(2 * at.y, 2 * at.x + 1);
    const float* c = source(2 * at.y + 1, 2 * at.x);
    const float* d = source(2 * at.y + 1, 2 * at.x + 1);
    const float quarter = 0.25f * weight;  // mean_of_four and the weight in one product
    AGF_VECTORISE
    for (int64_t j = 0; j < map.channels; ++j) values[j] = (a[j] + b[j] + c[j] + d[j]) * quarter;
    return;
  }
  const float* a = resample == Resample::up ? source(at.y / 2, at.x / 2) : source(at.y, at.x);
  AGF_VECTORISE
  for (int64_t j = 0; j < map.channels; ++j) values[j] = a[j] * weight;
}

void block_prologue(const BlockPrologue& e, const ExecutionContext& f) {
  const Map& shape = result_of(e);
  const int64_t channels = e.x.channels + (e.skip ? e.skip.channels : 0);
  float* values = reinterpret_cast<float*>(f.scratch);
  const Share mine = share_of(e, f);
  PixelIterator at(mine.begin, shape.height, shape.width);
  for (int64_t i = mine.begin; i < mine.end; ++i, at.next()) {
    gather(f, e.x, e.resample, e.weight, at, values);
    if (e.skip) gather(f, e.skip, Resample::keep, e.skip_weight, at, values + e.x.channels);
    if (e.normalised) {
      const float squares = sum_of_squares(values, static_cast<int>(channels));
      const float factor = normalize_factor(squares, static_cast<float>(e.normalised), kEps);
      AGF_VECTORISE
      for (int64_t j = 0; j < channels; ++j) values[j] *= factor;
    }
    for (const Map* map : {&e.main, &e.raw}) {
      if (!*map) continue;
      put(values, f.pixel(*map, at.image, at.y, at.x), channels, *map);
      if (at.x == 0) clear_border(f, *map, at.image, at.y, 0, channels);
    }
    if (e.act) {
      if (e.act.storage == Storage::f32) {
        AGF_VECTORISE
        for (int64_t j = 0; j < channels; ++j) values[j] = mp_silu(values[j]);
      } else {
        approximate_mp_silu(values, channels);
      }
      put(values, f.pixel(e.act, at.image, at.y, at.x), channels, e.act);
      if (at.x == 0) clear_border(f, e.act, at.image, at.y, 0, channels);
    }
  }
}

const RegisterCpuKernel registered[] = {{block_prologue_kernel, Isa::AGF_ISA, block_prologue}};

}  // namespace
}  // namespace agf::AGF_ISA
