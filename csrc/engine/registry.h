// Plans by number, the form in which an operator of torch takes one.
#pragma once
#include <memory>

#include "engine/plan.h"

namespace agf {

int64_t register_plan(std::shared_ptr<const Plan> plan);
std::shared_ptr<const Plan> find_plan(int64_t number);  // null if there is none
void forget_plan(int64_t number);

}  // namespace agf
