// Chooses the variant of the CPU loops once, when the library is loaded.
#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <stdexcept>
#include <string>

#include "cpu/amx.h"
#include "cpu/engine_kernels.h"
#include "cpu/kernels.h"

namespace agf {
namespace {

#if defined(__x86_64__)
// Not all compilers let __builtin_cpu_supports be asked for it.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

bool processor_runs(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case Isa::avx512:
      return processor_runs(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case Isa::avx512_vnni:
      return processor_runs(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::avx512_bf16:
      return processor_runs(Isa::avx512_vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::amx: return processor_runs(Isa::avx512_bf16) && amx_refusal().empty();
    case Isa::amx_portable:
    case Isa::baseline: return true;
  }
#endif
  return isa == Isa::baseline || isa == Isa::amx_portable;
}

std::atomic<Isa> current{Isa::baseline};  // threads may be in operators when it is set

}  // namespace

bool isa_available(Isa isa) {
  return convolve_kernel.variants[static_cast<int>(isa)] != nullptr && processor_runs(isa);
}

Isa isa() { return current.load(std::memory_order_relaxed); }

void set_isa(Isa isa) {
  if (!isa_available(isa)) {
    throw std::invalid_argument(
        std::string("set_isa: isa must be available on this machine, got ") +
        kIsaNames[static_cast<int>(isa)] + "; `autoguide-fast info` lists those that are");
  }
  current = isa;
}

void choose_isa() {
  for (int i = 0; i < static_cast<int>(Isa::amx_portable); ++i) {
    if (isa_available(static_cast<Isa>(i))) current = static_cast<Isa>(i);
  }
}

}  // namespace agf
