// Every kernel of the library, compiled for the simulator. A simulator of operators, see
// csrc/cuda/launch.h: `agf_simulate` runs one launch.
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "simt.h"

#include "cuda/kernels.cuh"
#include "cuda/types.cuh"

namespace {

using Entry = void (*)(const void* arguments);

std::map<std::pair<std::string, int>, Entry>& entries() {
  static std::map<std::pair<std::string, int>, Entry> map;
  return map;
}

template <class K, class... T>
void enter(const void* arguments) {
  static_cast<const K*>(arguments)->template run<T...>();
}

struct Register {
  template <class K, class... T>
  void at(int types) const {
    entries()[{K::name, types}] = &enter<K, T...>;
  }
};

template <class... Kernels>
void register_all() {
  (agf::cuda::for_types<Kernels>(Register{}), ...);
}

std::string error;
std::uint64_t seed = 0;
simt::Launch launch;

}  // namespace

extern "C" void agf_seed(std::uint64_t value) { seed = value; }
extern "C" void agf_only(std::int64_t block) { launch.only = block; }

extern "C" const char* agf_simulate(const char* kernel, int types, unsigned x, unsigned y,
                                    const void* arguments) {
  using namespace agf::cuda;
  if (entries().empty()) {
    register_all<MpSilu, MpSiluBackward, ModulateMpSiluRows, ModulateMpSiluPlanes,
                 ModulateMpSiluBackwardRows, ModulateMpSiluBackwardPlanes, MpSum, MpSumBackward,
                 MpCat, MpCatBackward, MpFourier, ResampleRows, ResamplePlanes, NormalizeRows,
                 NormalizePlanes, NormalizeBackwardRows, NormalizeBackwardPlanes, MpWeight,
                 MpWeightBackward, SumRows, AttentionSplit, AttentionSplitBackward, GuidedHeunFirst,
                 GuidedHeunSecond, Combine, InnerProducts>();
  }
  const auto entry = entries().find({kernel, types});
  if (entry == entries().end()) return "the simulator does not know this kernel";
  error = launch.run({x, y}, kThreads, seed++, [&] { entry->second(arguments); });
  return error.empty() ? nullptr : error.c_str();
}
