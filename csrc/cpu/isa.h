// Which variant of the CPU loops runs, and the table through which it is called.
#pragma once

namespace agf {

// Each includes those before it, but for the last: the tiles of `amx` in plain C++ and the baseline
// for the rest, which every machine has for tests and none chooses. The three before it have
// products of their own for int8 and bfloat16.
enum class Isa { baseline, avx2, avx512, avx512_vnni, avx512_bf16, amx, amx_portable };
constexpr int kIsas = 7;
constexpr const char* kIsaNames[kIsas] = {"baseline",    "avx2", "avx512",      "avx512_vnni",
                                          "avx512_bf16", "amx",  "amx_portable"};

bool isa_available(Isa isa);  // compiled in, and this processor runs it
Isa isa();                    // the one in use: the best available, unless set_isa said otherwise
void set_isa(Isa isa);        // throws std::invalid_argument if it is not available

// One entry per variant, filled in at load time by the objects compiled for it. Where a variant has
// no loop of its own, that of the one before serves. Inlined: objects of all variants call it, and
// the linker must not share what one of them compiled.
template <class Signature>
struct CpuKernel;

template <class... Args>
struct CpuKernel<void(Args...)> {
  using Function = void (*)(Args...);
  Function variants[kIsas];

  void operator()(Args... args) const { of(isa())(args...); }

  __attribute__((always_inline)) Function of(Isa isa) const {
    const Function own = variants[static_cast<int>(isa)];
    return own ? own : before(isa);
  }
  // What serves where `isa` has no loop of its own, or one that does not cover the case.
  __attribute__((always_inline)) Function before(Isa isa) const {
    if (isa == Isa::amx_portable) return variants[0];
    int variant = static_cast<int>(isa) - 1;
    while (variants[variant] == nullptr) --variant;
    return variants[variant];
  }
};

// Namespaces are named after variants, so AGF_ISA names the entry as well.
struct RegisterCpuKernel {
  template <class Kernel>
  RegisterCpuKernel(Kernel& kernel, Isa isa, typename Kernel::Function function) {
    kernel.variants[static_cast<int>(isa)] = function;
  }
};

}  // namespace agf
