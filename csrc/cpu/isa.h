// Which variant of the CPU loops runs, and the table through which it is called.
#pragma once

namespace agf {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };
constexpr int kIsas = 3;
constexpr const char* kIsaNames[kIsas] = {"baseline", "avx2", "avx512"};

bool isa_available(Isa isa);  // compiled in, and this processor runs it
Isa isa();                    // the one in use: the best available, unless set_isa said otherwise
void set_isa(Isa isa);        // throws std::invalid_argument if it is not available

// One entry per variant, filled in at load time by the objects compiled for it.
template <class Signature>
struct CpuKernel;

template <class... Args>
struct CpuKernel<void(Args...)> {
  using Function = void (*)(Args...);
  Function variants[kIsas];

  void operator()(Args... args) const { variants[static_cast<int>(isa())](args...); }
};

// Namespaces are named after variants, so AGF_ISA names the entry as well.
struct RegisterCpuKernel {
  template <class Kernel>
  RegisterCpuKernel(Kernel& kernel, Isa isa, typename Kernel::Function function) {
    kernel.variants[static_cast<int>(isa)] = function;
  }
};

}  // namespace agf
