// How much of an instruction is one thread's where tiles multiply, without running it.
#include "parts.h"

namespace agf::AGF_ISA {
namespace {

void amount(const Instruction& i, const ExecutionContext& f, double* to) {
  const auto* c = std::get_if<Convolve>(&i);
  if (c != nullptr && suits_tiles(*c)) {
    const Part p = part_on_tiles(*c, f);
    *to = static_cast<double>((p.last_row - p.first_row) * (p.last_panel - p.first_panel));
    return;
  }
  const auto* a = std::get_if<Attend>(&i);
  if (a != nullptr && suits_tiles(a->from) && a->from.temperature != 0) {
    const Share mine = share_on_tiles(*a, f);
    *to = static_cast<double>(mine.end - mine.begin);
    return;
  }
  amount_kernel.before(Isa::AGF_ISA)(i, f, to);
}

const RegisterCpuKernel registered[] = {{amount_kernel, Isa::AGF_ISA, amount}};

}  // namespace
}  // namespace agf::AGF_ISA
