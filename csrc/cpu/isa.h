// Which variant of the CPU loops runs, and the table through which it is called.
#pragma once

namespace agf {

// Each includes those before it. The last two have products of their own for int8 and bfloat16.
enum class Isa { baseline, avx2, avx512, avx512_vnni, avx512_bf16 };
constexpr int kIsas = 5;
constexpr const char* kIsaNames[kIsas] = {"baseline", "avx2", "avx512", "avx512_vnni",
                                          "avx512_bf16"};

bool isa_available(Isa isa);  // compiled in, and this processor runs it
Isa isa();                    // the one in use: the best available, unless set_isa said otherwise
void set_isa(Isa isa);        // throws std::invalid_argument if it is not available

// One entry per variant, filled in at load time by the objects compiled for it. Where a variant has
// no loop of its own, that of the one before serves.
template <class Signature>
struct CpuKernel;

template <class... Args>
struct CpuKernel<void(Args...)> {
  using Function = void (*)(Args...);
  Function variants[kIsas];

  void operator()(Args... args) const {
    int variant = static_cast<int>(isa());
    while (variants[variant] == nullptr) --variant;
    variants[variant](args...);
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
