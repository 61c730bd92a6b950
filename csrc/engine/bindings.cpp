// Map and Plan for Python: one method for each kind of instruction, arguments by name.
#include "engine/bindings.h"

#include <memory>
#include <mutex>

#include "engine/registry.h"

namespace py = pybind11;
using namespace agf;
using namespace py::literals;

namespace {

Storage storage_named(const std::string& name) {
  if (name == "f32") return Storage::f32;
  if (name == "bf16") return Storage::bf16;
  if (name == "u8") return Storage::u8;
  throw py::value_error("Map: storage must be f32, bf16 or u8, got " + name);
}

// A plan under construction, and once `number` was asked for, a plan that runs.
class PlanBuilder {
 public:
  PlanBuilder(int64_t resolution, int64_t image_channels, int64_t image_bytes, int64_t weight_bytes,
              int64_t modulations)
      : plan_(std::make_shared<Plan>()) {
    plan_->resolution = resolution;
    plan_->image_channels = image_channels;
    plan_->image_bytes = image_bytes;
    plan_->weight_bytes = weight_bytes;
    plan_->modulations = modulations;
  }
  PlanBuilder(const PlanBuilder&) = delete;
  ~PlanBuilder() {
    if (number_) forget_plan(number_);
  }
  void add(const Instruction& instruction) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (number_) throw std::runtime_error("Plan: a plan that runs cannot grow; make another");
    append(*plan_, instruction);
  }
  int64_t number() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!number_) number_ = register_plan(plan_);
    return number_;
  }
  const Plan& plan() const { return *plan_; }

 private:
  std::mutex mutex_;
  std::shared_ptr<Plan> plan_;
  int64_t number_ = 0;
};

}  // namespace

void bind_plans(py::module_& m) {
  py::class_<Map>(m, "Map", "Where and how a feature map lies in an image's part of the arena.")
      .def(py::init<>())
      .def(py::init([](int64_t offset, int64_t height, int64_t width, int64_t channels,
                       int64_t border, const std::string& storage, float scale, float zero) {
             return Map{offset, height, width, channels, border, storage_named(storage),
                        scale,  zero};
           }),
           py::kw_only(), "offset"_a, "height"_a, "width"_a, "channels"_a, "border"_a = 0,
           "storage"_a = "f32", "scale"_a = 1.0f, "zero"_a = 0.0f)
      .def_property_readonly("bytes", &Map::bytes);

  const Map none;
  py::class_<PlanBuilder>(m, "Plan",
                          "Instructions of one evaluation of a U-Net; see csrc/engine/plan.h.")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, int64_t>(), py::kw_only(), "resolution"_a,
           "image_channels"_a, "image_bytes"_a, "weight_bytes"_a, "modulations"_a)
      .def_property_readonly("number", &PlanBuilder::number, "What the operator `evaluate` takes.")
      .def_property_readonly("scratch_bytes",
                             [](const PlanBuilder& p) { return p.plan().scratch_bytes; })
      .def("__len__", [](const PlanBuilder& p) { return p.plan().instructions.size(); })
      .def(
          "load",
          [](PlanBuilder& p, const Map& out, int64_t image_channels) {
            p.add(Load{out, image_channels});
          },
          py::kw_only(), "out"_a, "image_channels"_a)
      .def(
          "block_prologue",
          [](PlanBuilder& p, const Map& x, const Map& skip, const Map& main, const Map& act,
             const Map& raw, int resample, float weight, float skip_weight, int64_t normalised) {
            p.add(
                BlockPrologue{x, skip, main, act, raw, resample, weight, skip_weight, normalised});
          },
          py::kw_only(), "x"_a, "skip"_a = none, "main"_a = none, "act"_a = none, "raw"_a = none,
          "resample"_a = 0, "weight"_a = 1.0f, "skip_weight"_a = 0.0f, "normalised"_a = 0)
      .def(
          "convolve",
          [](PlanBuilder& p, const Map& in, int64_t weights, int64_t taps, int64_t in_channels,
             const Map& sum, const Map& out, const Map& act, int64_t dequantise, int64_t modulation,
             float sum_weight, float limit, int64_t winograd) {
            p.add(Convolve{in, sum, out, act, taps, in_channels, weights, winograd, dequantise,
                           modulation, sum_weight, limit});
          },
          py::kw_only(), "in_"_a, "weights"_a, "taps"_a, "in_channels"_a, "sum"_a = none,
          "out"_a = none, "act"_a = none, "dequantise"_a = -1, "modulation"_a = -1,
          "sum_weight"_a = 0.0f, "limit"_a = std::numeric_limits<float>::infinity(),
          "winograd"_a = 0)
      .def(
          "attend",
          [](PlanBuilder& p, const Map& qkv, const Map& out, int64_t heads, int64_t head_channels,
             int64_t head_stride, int64_t q, int64_t k, int64_t v, int64_t pixels_stride) {
            const SplitHeads split{qkv, heads, head_channels, head_stride, q, k, v, pixels_stride};
            p.add(split);
            p.add(Attend{split, out});
          },
          py::kw_only(), "qkv"_a, "out"_a, "heads"_a, "head_channels"_a, "head_stride"_a, "q"_a,
          "k"_a, "v"_a, "pixels_stride"_a)
      .def(
          "store",
          [](PlanBuilder& p, const Map& in, int64_t image_channels) {
            p.add(Store{in, image_channels});
          },
          py::kw_only(), "in_"_a, "image_channels"_a);
}
