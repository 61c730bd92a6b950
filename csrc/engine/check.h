// Whether a plan may have an instruction.
#pragma once
#include "engine/plan.h"

namespace agf {

// Throws std::invalid_argument unless every map and weight of the instruction lies within the plan
// and its shapes agree: what is checked here the loops take for granted.
void check_instruction(const Plan& plan, const Instruction& instruction);

}  // namespace agf
