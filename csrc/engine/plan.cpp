// How a plan grows.
#include "engine/plan.h"

#include <algorithm>

#include "cpu/engine_kernels.h"
#include "engine/check.h"

namespace agf {

void Plan::add(const Instruction& instruction) {
  check_instruction(*this, instruction);
  const int64_t scratch =
      std::visit([](const auto& i) { return agf::scratch_bytes(i); }, instruction);
  scratch_bytes = std::max(scratch_bytes, aligned_bytes(scratch));
  instructions.push_back(instruction);
}

}  // namespace agf
