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
  if (const auto* store = std::get_if<Store>(&instruction)) {
    results = std::max(results, store->result + 1);
  }
  instructions.push_back(instruction);
}

std::vector<std::vector<double>> shares(const Plan& plan, int64_t images, int64_t threads) {
  std::vector<std::vector<double>> amounts;
  ExecutionContext f{};
  f.images = images;
  f.threads = static_cast<int>(threads);
  for (const Instruction& i : plan.instructions) {
    amounts.emplace_back(threads);
    for (f.thread = 0; f.thread < f.threads; ++f.thread) {
      amount_kernel(i, f, &amounts.back()[f.thread]);
    }
  }
  return amounts;
}

}  // namespace agf
