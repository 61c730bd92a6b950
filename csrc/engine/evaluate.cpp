// evaluate and guided_half_step: the operators that run plans. Schemas, checks, and the split over
// threads.
#include <time.h>

#include <chrono>

#include "cpu/engine_kernels.h"
#include "engine/registry.h"
#include "engine/team.h"
#include "tensor.h"

namespace agf {
namespace {

struct Run {
  const ExecutionContext& f;
  void operator()(const Load& i) const { load_kernel(i, f); }
  void operator()(const BlockPrologue& i) const { block_prologue_kernel(i, f); }
  void operator()(const Convolve& i) const {
    (i.winograd == Convolve::direct  ? convolve_kernel
     : i.in.storage == Storage::bf16 ? winograd_bf16_kernel
                                     : winograd_kernel)(i, f);
  }
  void operator()(const SplitHeads& i) const { split_heads_kernel(i, f); }
  void operator()(const Attend& i) const { attend_kernel(i, f); }
  void operator()(const Store& i) const { store_kernel(i, f); }
};

double seconds() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Of this thread on a core: other programs do not add to them.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// One net's part in a call: its plan and tensors, checked.
struct Net {
  std::shared_ptr<const Plan> plan;
  const char* weights = nullptr;
  const float* modulations = nullptr;
  int64_t modulation_stride = 0;
  float* result = nullptr;
  int64_t chunk = 1;  // images that a team takes through the plan together
  double* times = nullptr;
  double (*clock)() = seconds;
};

// The images, and the teams of threads that share them.
struct Call {
  const char* function;
  int64_t images, threads;
  Teams teams{1, 1};
  const char* x;
  bool x_is_double;
  int64_t x_strides[4];
  double c_in;

  Call(const char* name, const Tensor& image, double scale, int64_t count)
      : function(name), images(0), threads(count), c_in(scale) {
    check_image(function, "x", image);
    const Dtype dtype = dtype_of(function, "x", image);
    check(dtype == Dtype::f32 || dtype == Dtype::f64, function,
          ": x must be float32 or float64 images, got another type; convert it with .to()");
    check(threads >= 1, function, ": threads must be positive, got ", threads);
    images = image.size(0);
    x = static_cast<const char*>(image.const_data_ptr());
    x_is_double = dtype == Dtype::f64;
    for (int d = 0; d < 4; ++d) x_strides[d] = image.stride(d);
    teams = Teams(images, threads);
  }

  Net net(int64_t number, const Tensor& x_tensor, const Tensor& weights, const Tensor& modulations,
          Tensor& result, int64_t chunk) const {
    Net n;
    n.plan = find_plan(number);
    check(n.plan != nullptr, function, ": plan must be alive, got ", number, "; keep its owner");
    const Plan& plan = *n.plan;
    const std::vector<int64_t> shape{images, plan.image_channels, plan.resolution, plan.resolution};
    check(sizes_of(x_tensor) == shape, function, ": x must be images of the plan's size, got ",
          shape_of(x_tensor), "; resize it");
    std::vector<int64_t> results = shape;
    if (plan.results > 1) results.insert(results.begin(), plan.results);
    check(sizes_of(result) == results && result.is_contiguous() &&
              result.scalar_type() == ScalarType::Float,
          function, ": result must be contiguous float32 of the shape of x, for each of ",
          plan.results, " results, got ", shape_of(result));
    check(weights.scalar_type() == ScalarType::Byte && weights.numel() == plan.weight_bytes &&
              aligned(weights),
          function, ": weights must be the plan's, on a multiple of 64 bytes, got ",
          weights.numel(), " bytes for ", plan.weight_bytes);
    check(modulations.dim() == 2 && modulations.is_contiguous() &&
              modulations.scalar_type() == ScalarType::Float &&
              modulations.size(1) == plan.modulations &&
              (modulations.size(0) == 1 || modulations.size(0) == images),
          function, ": modulations must be float32 [1 or N, ", plan.modulations, "], got ",
          shape_of(modulations));
    check(chunk >= 1, function, ": chunk must be positive, got ", chunk);
    n.weights = static_cast<const char*>(weights.const_data_ptr());
    n.modulations = static_cast<const float*>(modulations.const_data_ptr());
    n.modulation_stride = modulations.size(0) == 1 ? 0 : plan.modulations;
    n.result = static_cast<float*>(result.mutable_data_ptr());
    n.chunk = chunk;
    return n;
  }

  static bool aligned(const Tensor& t) {
    return reinterpret_cast<std::uintptr_t>(t.const_data_ptr()) % kAlignment == 0;
  }

  // Runs the nets one after the other, then done(begin, end) for each thread's share of the images'
  // elements. Teams never wait for each other, so each has its own part of the arena.
  template <class Done>
  void run(const std::vector<Net>& nets, Tensor& arena, const Done& done) const {
    int64_t part = 0;
    for (const Net& net : nets) {
      part = std::max(part, net.plan->team_bytes(net.chunk, teams.members));
    }
    check(arena.scalar_type() == ScalarType::Byte && arena.is_contiguous() && aligned(arena) &&
              arena.numel() >= teams.count * part,
          function, ": arena must have ", teams.count * part, " bytes on a multiple of 64, got ",
          arena.numel());
    if (images == 0) return;
    char* const base = static_cast<char*>(arena.mutable_data_ptr());
    const Plan& first = *nets.front().plan;
    const int64_t elements = first.image_channels * first.resolution * first.resolution;
    std::vector<std::unique_ptr<Barrier>> barriers;
    for (int64_t i = 0; i < teams.count; ++i) {
      barriers.push_back(std::make_unique<Barrier>(teams.members));
    }
    run_threads(static_cast<int>(threads), [&](int thread) {
      const int64_t members = teams.members, team = thread / members, member = thread % members;
      const int64_t begin = images * team / teams.count, end = images * (team + 1) / teams.count;
      for (const Net& net : nets) {
        run_net(net, base + team * part, static_cast<int>(member), begin, end, elements,
                thread == 0 ? net.times : nullptr, *barriers[team]);
      }
      const int64_t share = (end - begin) * elements;
      done(begin * elements + share * member / members,
           begin * elements + share * (member + 1) / members);
    });
  }

  // One thread's part in a plan for its team's images [begin, end).
  void run_net(const Net& net, char* arena, int member, int64_t begin, int64_t end,
               int64_t elements, double* times, Barrier& barrier) const {
    ExecutionContext f{};
    f.arena = arena;
    f.image_bytes = net.plan->image_bytes;
    f.weights = net.weights;
    f.modulation_stride = net.modulation_stride;
    f.thread = member;
    f.threads = static_cast<int>(teams.members);
    f.scratch = arena + net.plan->team_bytes(net.chunk, member);
    f.x_is_double = x_is_double;
    for (int d = 0; d < 4; ++d) f.x_strides[d] = x_strides[d];
    f.c_in = c_in;
    for (int64_t first = begin; first < end; first += net.chunk) {
      f.images = std::min(net.chunk, end - first);
      f.x = x + first * x_strides[0] * (x_is_double ? 8 : 4);
      f.result = net.result + first * elements;
      f.result_stride = images * elements;
      f.modulations = net.modulations + first * net.modulation_stride;
      double before = times ? net.clock() : 0;
      for (size_t i = 0; i < net.plan->instructions.size(); ++i) {
        std::visit(Run{f}, net.plan->instructions[i]);
        barrier.wait();
        if (times) {
          const double now = net.clock();
          times[i] += now - before;
          before = now;
        }
      }
    }
  }
};

void evaluate(int64_t plan, const Tensor& x, double c_in, const Tensor& weights,
              const Tensor& modulations, Tensor arena, Tensor result, int64_t threads,
              int64_t chunk, std::optional<Tensor> times, bool cpu_times) {
  const Call call("evaluate", x, c_in, threads);
  Net net = call.net(plan, x, weights, modulations, result, chunk);
  if (times) {
    const auto count = static_cast<int64_t>(net.plan->instructions.size());
    check(times->numel() == count && times->scalar_type() == ScalarType::Double &&
              times->is_contiguous(),
          "evaluate: times must be float64 [", count, "]");
    net.times = static_cast<double*>(times->mutable_data_ptr());
    if (cpu_times) net.clock = cpu_seconds;
  }
  call.run({net}, arena, [](int64_t, int64_t) {});
}

// The whole of a half step in one call: the model and the guide, then the fused update of each
// team's images while the nets' results are in cache.
void guided_half_step(const std::vector<int64_t>& plans, const std::vector<Tensor>& weights,
                      const std::vector<Tensor>& modulations, std::vector<Tensor> raws,
                      const std::vector<int64_t>& chunks, Tensor arena, int64_t threads,
                      const Tensor& x, std::optional<Tensor> x_next, Tensor slope, Tensor out,
                      double c_in, double sigma, double sigma_next, double guidance,
                      double sigma_data) {
  const char* function = "guided_half_step";
  const Tensor& at = x_next ? *x_next : x;
  const Call call(function, at, c_in, threads);
  for (const auto& [name, t] :
       {std::pair{"x", &x}, {"x_next", &at}, {"slope", &slope}, {"out", &out}}) {
    check_like(function, name, *t, "x", x);
    check(t->is_contiguous(), function, ": ", name, " must be contiguous; use .contiguous()");
  }
  const size_t count = plans.size();
  check(count == 1 || count == 2, function,
        ": plans must be those of a model or of a model and its guide, got ", count);
  check(weights.size() == count && modulations.size() == count && raws.size() == count &&
            chunks.size() == count,
        function, ": weights, modulations, raws and chunks must be one for each of ", count,
        " plans, got ", weights.size(), ", ", modulations.size(), ", ", raws.size(), " and ",
        chunks.size());
  std::vector<Net> nets;
  for (size_t i = 0; i < count; ++i) {
    nets.push_back(call.net(plans[i], at, weights[i], modulations[i], raws[i], chunks[i]));
  }
  const Dtype dtype = dtype_of(function, "x", x);
  const GuidedLevels levels{x_next ? sigma_next : sigma, sigma_next - sigma, guidance, sigma_data,
                            true};
  const void* raw = nets.front().result;
  // The guide's result is that of its own plan, or the second one of a plan of both.
  const void* guide_raw = count == 2                       ? nets.back().result
                          : nets.front().plan->results > 1 ? nets.front().result + at.numel()
                                                           : nullptr;
  call.run(nets, arena, [&](int64_t begin, int64_t end) {
    if (x_next) {
      guided_heun_second_kernel(dtype, Dtype::f32, x.const_data_ptr(), at.const_data_ptr(),
                                slope.const_data_ptr(), raw, guide_raw, out.mutable_data_ptr(),
                                levels, begin, end);
    } else {
      guided_heun_first_kernel(dtype, Dtype::f32, x.const_data_ptr(), raw, guide_raw,
                               out.mutable_data_ptr(), slope.mutable_data_ptr(), levels, begin,
                               end);
    }
  });
}

}  // namespace
}  // namespace agf

STABLE_TORCH_LIBRARY_FRAGMENT(autoguide_fast, m) {
  m.def(
      "evaluate(int plan, Tensor x, float c_in, Tensor weights, Tensor modulations, "
      "Tensor(a!) arena, Tensor(b!) result, int threads, int chunk, Tensor(c!)? times, "
      "bool cpu_times=False) -> ()");
  // The nets, of the model and of the guide if there is one, at x, or at x_next where that is
  // given; then guided_heun_first, whose results go to out and slope, or guided_heun_second, which
  // reads slope.
  m.def(
      "guided_half_step(int[] plans, Tensor[] weights, Tensor[] modulations, Tensor(a!)[] raws, "
      "int[] chunks, Tensor(b!) arena, int threads, Tensor x, Tensor? x_next, Tensor(c!) slope, "
      "Tensor(d!) out, float c_in, float sigma, float sigma_next, float guidance, "
      "float sigma_data) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(autoguide_fast, CPU, m) {
  m.impl("evaluate", TORCH_BOX(&agf::evaluate));
  m.impl("guided_half_step", TORCH_BOX(&agf::guided_half_step));
}
