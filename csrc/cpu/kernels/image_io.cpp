// The first and the last instruction: images of any strides into the arena, the result out of it.
#include "cpu/engine_kernels.h"
#include "parts.h"
#include "storage.h"

namespace agf::AGF_ISA {
namespace {

template <class T>
void load_images(const Load& l, const ExecutionContext& f) {
  const auto* x = static_cast<const T*>(f.x);
  const float c_in = static_cast<float>(f.c_in);
  const Share mine = share_of(l, f);
  PixelIterator at(mine.begin, l.out.height, l.out.width);
  for (int64_t i = mine.begin; i < mine.end; ++i, at.next()) {
    auto* out = reinterpret_cast<float*>(f.pixel(l.out, at.image, at.y, at.x));
    const T* in = x + at.image * f.x_strides[0] + at.y * f.x_strides[2] + at.x * f.x_strides[3];
    for (int64_t c = 0; c < l.out.channels; ++c) {
      out[c] = c < l.image_channels ? static_cast<float>(in[c * f.x_strides[1]]) * c_in
                                    : c == l.image_channels;
    }
    if (at.x == 0) clear_border(f, l.out, at.image, at.y, 0, l.out.channels);
  }
}

void load(const Load& l, const ExecutionContext& f) {
  f.x_is_double ? load_images<double>(l, f) : load_images<float>(l, f);
}

void store(const Store& s, const ExecutionContext& f) {
  const int64_t pixels = s.in.height * s.in.width;
  const Share mine = share_of(s, f);
  PixelIterator at(mine.begin, s.in.height, s.in.width);
  for (int64_t i = mine.begin; i < mine.end; ++i, at.next()) {
    const auto* in = reinterpret_cast<const float*>(f.pixel(s.in, at.image, at.y, at.x));
    float* out = f.result + s.result * f.result_stride + at.image * s.image_channels * pixels +
                 at.y * s.in.width + at.x;
    for (int64_t c = 0; c < s.image_channels; ++c) out[c * pixels] = in[c];
  }
}

const RegisterCpuKernel registered[] = {
    {load_kernel, Isa::AGF_ISA, load},
    {store_kernel, Isa::AGF_ISA, store},
};

}  // namespace
}  // namespace agf::AGF_ISA
