// The engine's 3x3 convolution by Winograd's F(4x4, 3x3) in float32. Unlike the others it
// transforms weights at each use: transformed ones would take four times the memory, and with few
// tiles reading them would take longer than making them. And it adds up the sums of blocks of input
// channels, not all products in turn, which halves the rounding errors.
#include "winograd_engine.h"

namespace agf::AGF_ISA {
namespace {

using Float32 = WinogradPolicy<WinogradF4, Storage::f32, Storage::f32>;

// Weights [panel][channel][9][16] that are transformed for each group of panels and each block of
// input channels, whose U [points][inputs][panels * 16] the L2 cache holds.
struct UntransformedWeights {
  const float* data;

  // Not inlined, for its registers.
  __attribute__((noinline)) void transform(const Products& r, int64_t begin, int64_t inputs,
                                           PointMatrices u) const {
    using Transform = Float32::Weights;
    const int64_t width = r.taken * kLanes;
    for (int panel = 0; panel < r.taken; ++panel) {
      for (int64_t ch = 0; ch < inputs; ++ch) {
        for (int64_t lane = 0; lane < kLanes; lane += kWidth) {
          const float* w = data + ((r.panel + panel) * r.channels + begin + ch) * 9 * kLanes + lane;
          char* to = u.data + (ch * width + panel * kLanes + lane) * 4;
          transform_square<Transform>(
              [&](int i, int j) { return load_as<Floats>(w + (i * 3 + j) * kLanes); },
              [&](int i, int j, Floats value) {
                store_floats<Storage::f32>(value, to + (i * Transform::kTo + j) * u.stride);
              });
        }
      }
    }
  }

  void multiply_all(const Products& r) const {
    const int64_t step = r.taken * kLanes * 4;
    for (int64_t begin = 0; begin < r.channels; begin += kWinogradInputs) {
      const int64_t left = r.channels - begin;
      const int64_t inputs = left < kWinogradInputs ? left : kWinogradInputs;
      const PointMatrices u{r.m[Float32::kPoints], inputs * step + kPointPadding};
      transform(r, begin, inputs, u);
      for (int i = 0; i < Float32::kPoints; ++i) {
        const auto multiply =
            begin ? multiply_point<Float32, true> : multiply_point<Float32, false>;
        multiply(r, i, begin, inputs, u[i], step, kLanes * 4);
      }
    }
  }
};

void winograd(const Convolve& c, const ExecutionContext& f) {
  convolve_map<Float32>(
      c, f, transforming_part(c, f),
      UntransformedWeights{reinterpret_cast<const float*>(f.weights + c.weights)});
}

const RegisterCpuKernel registered[] = {{winograd_kernel, Isa::AGF_ISA, winograd}};

}  // namespace
}  // namespace agf::AGF_ISA
