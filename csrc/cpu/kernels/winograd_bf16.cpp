// The engine's 3x3 convolution in bf16 by Winograd's F(2x2, 3x3) or F(4x4, 3x3). What is
// transformed is rounded to bf16 once more. That costs F(2x2), whose transforms only add, 1.8 times
// the error of a direct convolution in bf16, and F(4x4) 4.5 times: that is no more than int8 costs,
// whose products are twice as fast but four times as many.
#include "winograd_engine.h"

namespace agf::AGF_ISA {
namespace {

using Small = WinogradPolicy<WinogradF2, Storage::bf16, Storage::bf16>;
using Large = WinogradPolicy<WinogradF4, Storage::bf16, Storage::bf16>;

template <class P>
void convolve_packed(const Convolve& c, const ExecutionContext& f) {
  const int64_t point = c.in.pixel_bytes() * kLanes;
  convolve_map<P>(c, f, packed_part(c, f),
                  PackedWeights<P>{f.weights + c.weights, point, P::kPoints * point});
}

void winograd_bf16(const Convolve& c, const ExecutionContext& f) {
  c.winograd == 4 ? convolve_packed<Large>(c, f) : convolve_packed<Small>(c, f);
}

const RegisterCpuKernel registered[] = {{winograd_bf16_kernel, Isa::AGF_ISA, winograd_bf16}};

}  // namespace
}  // namespace agf::AGF_ISA
