// Chooses the variant of the CPU loops once, when the library is loaded.
#include "cpu/isa.h"

#include <stdexcept>
#include <string>

#include "cpu/engine_kernels.h"
#include "cpu/kernels.h"

namespace agf {
namespace {

bool processor_runs(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return processor_runs(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case Isa::avx512_vnni:
      return processor_runs(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::avx512_bf16:
      return processor_runs(Isa::avx512_vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::baseline:
      return true;
  }
#endif
  return isa == Isa::baseline;
}

Isa current = Isa::baseline;

}  // namespace

bool isa_available(Isa isa) {
  return convolve_kernel.variants[static_cast<int>(isa)] != nullptr && processor_runs(isa);
}

Isa isa() { return current; }

void set_isa(Isa isa) {
  if (!isa_available(isa)) {
    throw std::invalid_argument(std::string("set_isa: isa must be available on this machine, got ") +
                                kIsaNames[static_cast<int>(isa)] +
                                "; `autoguide-fast info` lists those that are");
  }
  current = isa;
}

void choose_isa() {
  for (int i = 0; i < kIsas; ++i) {
    if (isa_available(static_cast<Isa>(i))) current = static_cast<Isa>(i);
  }
}

}  // namespace agf
