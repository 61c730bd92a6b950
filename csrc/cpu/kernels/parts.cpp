// How much of an instruction is one thread's, without running it.
#include "parts.h"

namespace agf::AGF_ISA {
namespace {

struct Amount {
  const ExecutionContext& f;
  double operator()(const Convolve& c) const {
    const Part p = part_of(c, f);
    return static_cast<double>((p.last_row - p.first_row) * (p.last_panel - p.first_panel));
  }
  template <class Other>
  double operator()(const Other& i) const {
    const Share mine = share_of(i, f);
    return static_cast<double>(mine.end - mine.begin);
  }
};

void amount(const Instruction& i, const ExecutionContext& f, double* to) {
  *to = std::visit(Amount{f}, i);
}

const RegisterCpuKernel registered[] = {{amount_kernel, Isa::AGF_ISA, amount}};

}  // namespace
}  // namespace agf::AGF_ISA
