// evaluate: the operator that runs a plan. Schema, checks, and the split over threads.
#include <chrono>
#include <numeric>

#include "cpu/engine_kernels.h"
#include "engine/registry.h"
#include "engine/team.h"
#include "tensor.h"

namespace agf {
namespace {

struct Run {
  const Frame& f;
  void operator()(const Load& i) const { load_kernel(i, f); }
  void operator()(const Enter& i) const { enter_kernel(i, f); }
  void operator()(const Convolve& i) const {
    (!i.winograd                ? convolve_kernel
     : i.in.cell == Cell::bf16 ? winograd_bf16_kernel
                               : winograd_kernel)(i, f);
  }
  void operator()(const SplitHeads& i) const { split_heads_kernel(i, f); }
  void operator()(const Attend& i) const { attend_kernel(i, f); }
  void operator()(const Store& i) const { store_kernel(i, f); }
};

// Threads work in teams that share out the images: alone on images of their own where these go
// round evenly, which needs no meeting, else together on the same image.
int64_t count_teams(int64_t images, int64_t threads) {
  return images >= 4 * threads ? threads : std::gcd(images, threads);
}

double seconds() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

void evaluate(int64_t plan_number, const Tensor& x, double c_in, const Tensor& weights,
              const Tensor& modulations, Tensor arena, Tensor result, int64_t threads,
              int64_t chunk, std::optional<Tensor> times) {
  const std::shared_ptr<const Plan> plan = find_plan(plan_number);
  check(plan != nullptr, "evaluate: plan must be alive, got ", plan_number, "; keep its owner");
  check_image("evaluate", "x", x);
  const int64_t images = x.size(0);
  const std::vector<int64_t> shape{images, plan->image_channels, plan->resolution, plan->resolution};
  const Dtype dtype = dtype_of("evaluate", "x", x);
  check(sizes_of(x) == shape && (dtype == Dtype::f32 || dtype == Dtype::f64),
        "evaluate: x must be float32 or float64 images of the plan's size, got ", shape_of(x),
        "; resize it");
  check(sizes_of(result) == shape && result.is_contiguous() &&
            result.scalar_type() == ScalarType::Float,
        "evaluate: result must be contiguous float32 of the shape of x, got ", shape_of(result));
  check(weights.scalar_type() == ScalarType::Byte && weights.numel() == plan->weight_bytes,
        "evaluate: weights must be the plan's, got ", weights.numel(), " bytes for ",
        plan->weight_bytes);
  check(modulations.dim() == 2 && modulations.is_contiguous() &&
            modulations.scalar_type() == ScalarType::Float &&
            modulations.size(1) == plan->modulations &&
            (modulations.size(0) == 1 || modulations.size(0) == images),
        "evaluate: modulations must be float32 [1 or N, ", plan->modulations, "], got ",
        shape_of(modulations));
  check(threads >= 1 && chunk >= 1, "evaluate: threads and chunk must be positive, got ", threads,
        " and ", chunk);
  if (images == 0) return;
  const int64_t teams = count_teams(images, threads), members = threads / teams;
  const int64_t needed = teams * chunk * plan->image_bytes + threads * plan->scratch_bytes;
  check(arena.scalar_type() == ScalarType::Byte && arena.is_contiguous() && arena.numel() >= needed,
        "evaluate: arena must have ", needed, " bytes, got ", arena.numel());
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 64 == 0; };
  check(aligned(arena.const_data_ptr()) && aligned(weights.const_data_ptr()),
        "evaluate: arena and weights must lie on a multiple of 64 bytes");
  const auto count = static_cast<int64_t>(plan->instructions.size());
  check(!times || (times->numel() == count && times->scalar_type() == ScalarType::Double &&
                   times->is_contiguous()),
        "evaluate: times must be float64 [", count, "]");

  char* const base = static_cast<char*>(arena.mutable_data_ptr());
  char* const scratch = base + teams * chunk * plan->image_bytes;
  const auto* x_data = static_cast<const char*>(x.const_data_ptr());
  const int64_t x_size = dtype == Dtype::f64 ? 8 : 4;
  auto* result_data = static_cast<float*>(result.mutable_data_ptr());
  const auto* modulation_data = static_cast<const float*>(modulations.const_data_ptr());
  const int64_t modulation_stride = modulations.size(0) == 1 ? 0 : plan->modulations;
  double* const time_data = times ? static_cast<double*>(times->mutable_data_ptr()) : nullptr;
  std::vector<std::unique_ptr<Barrier>> barriers;
  for (int64_t i = 0; i < teams; ++i) barriers.push_back(std::make_unique<Barrier>(members));

  run_threads(static_cast<int>(teams * members), [&](int thread) {
    const int64_t team = thread / members;
    const int64_t end = images * (team + 1) / teams;
    Frame f{};
    f.arena = base + team * chunk * plan->image_bytes;
    f.image_bytes = plan->image_bytes;
    f.weights = static_cast<const char*>(weights.const_data_ptr());
    f.modulation_stride = modulation_stride;
    f.thread = static_cast<int>(thread % members);
    f.threads = static_cast<int>(members);
    f.scratch = scratch + thread * plan->scratch_bytes;
    f.x_is_double = dtype == Dtype::f64;
    for (int d = 0; d < 4; ++d) f.x_strides[d] = x.stride(d);
    f.c_in = c_in;
    for (int64_t first = images * team / teams; first < end; first += chunk) {
      f.images = std::min(chunk, end - first);
      f.x = x_data + first * f.x_strides[0] * x_size;
      f.result = result_data + first * (result.numel() / images);
      f.modulations = modulation_data + first * modulation_stride;
      double before = time_data && thread == 0 ? seconds() : 0;
      for (int64_t i = 0; i < count; ++i) {
        std::visit(Run{f}, plan->instructions[i]);
        barriers[team]->wait();
        if (time_data && thread == 0) {
          const double now = seconds();
          time_data[i] += now - before;
          before = now;
        }
      }
    }
  });
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def(
      "evaluate(int plan, Tensor x, float c_in, Tensor weights, Tensor modulations, "
      "Tensor(a!) arena, Tensor(b!) result, int threads, int chunk, Tensor(c!)? times) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) { m.impl("evaluate", TORCH_BOX(&agf::evaluate)); }
