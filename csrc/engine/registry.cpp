// The plans that are alive.
#include "engine/registry.h"

#include <mutex>
#include <unordered_map>

namespace agf {
namespace {

std::mutex mutex;
std::unordered_map<int64_t, std::shared_ptr<const Plan>>& plans() {
  static auto* all = new std::unordered_map<int64_t, std::shared_ptr<const Plan>>;
  return *all;
}

}  // namespace

int64_t register_plan(std::shared_ptr<const Plan> plan) {
  static int64_t next = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  plans()[++next] = std::move(plan);
  return next;
}

std::shared_ptr<const Plan> find_plan(int64_t number) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = plans().find(number);
  return found == plans().end() ? nullptr : found->second;
}

void forget_plan(int64_t number) {
  const std::lock_guard<std::mutex> lock(mutex);
  plans().erase(number);
}

}  // namespace agf
