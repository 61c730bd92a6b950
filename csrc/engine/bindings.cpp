// Plans, maps and instructions for Python, and what both sides have to know of them.
#include "engine/bindings.h"

#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "engine/fields.h"
#include "engine/registry.h"
#include "engine/team.h"

namespace py = pybind11;
using namespace agf;
using namespace py::literals;

namespace {

// A plan under construction, and once `number` was asked for, a plan that runs.
class PlanBuilder {
 public:
  explicit PlanBuilder(Plan plan) : plan_(std::make_shared<Plan>(std::move(plan))) {}
  PlanBuilder(const PlanBuilder&) = delete;
  ~PlanBuilder() {
    if (number_) forget_plan(number_);
  }
  void add(const Instruction& instruction) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (number_) throw std::runtime_error("Plan: a plan that runs cannot grow; make another");
    plan_->add(instruction);
  }
  int64_t number() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!number_) number_ = register_plan(plan_);
    return number_;
  }
  // Of the plan as it stands: another thread may be adding to it. `read` must not call Python.
  template <class Read>
  auto read(const Read& read) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return read(std::as_const(*plan_));
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<Plan> plan_;
  int64_t number_ = 0;
};

// What a plan is made with, by name.
constexpr std::pair<const char*, int64_t Plan::*> kOptions[] = {
    {"resolution", &Plan::resolution},   {"image_channels", &Plan::image_channels},
    {"image_bytes", &Plan::image_bytes}, {"weight_bytes", &Plan::weight_bytes},
    {"modulations", &Plan::modulations},
};

std::unique_ptr<PlanBuilder> make_plan(int64_t resolution, int64_t image_channels,
                                       int64_t image_bytes, int64_t weight_bytes,
                                       int64_t modulations) {
  Plan plan;
  plan.resolution = resolution;
  plan.image_channels = image_channels;
  plan.image_bytes = image_bytes;
  plan.weight_bytes = weight_bytes;
  plan.modulations = modulations;
  return std::make_unique<PlanBuilder>(std::move(plan));
}

py::tuple plan_state(const PlanBuilder& builder) {
  const Plan plan = builder.read([](const Plan& p) { return p; });
  py::dict options;
  for (const auto& [name, member] : kOptions) options[name] = plan.*member;
  return py::make_tuple(options, plan.instructions);
}

std::unique_ptr<PlanBuilder> plan_of_state(const py::tuple& state) {
  const py::dict options = state[0];
  Plan plan;
  for (const auto& [name, member] : kOptions) plan.*member = options[name].cast<int64_t>();
  auto made = std::make_unique<PlanBuilder>(std::move(plan));
  for (const py::handle& i : state[1]) made->add(i.cast<Instruction>());
  return made;
}

void bind_enums(py::module_& m) {
  py::enum_<Storage>(m, "Storage", "How a map's values are stored.")
      .value("F32", Storage::f32)
      .value("BF16", Storage::bf16)
      .value("U8", Storage::u8)
      .def_property_readonly("bytes", &storage_bytes, "Of one value.");
  py::enum_<Resample>(m, "Resample", "Whether a block halves its map, keeps or doubles it.")
      .value("DOWN", Resample::down)
      .value("KEEP", Resample::keep)
      .value("UP", Resample::up);
  py::enum_<Convolve::Winograd>(m, "Winograd", "The algorithm of a convolution.")
      .value("DIRECT", Convolve::direct, "The sum of products itself.")
      .value("F2X2", Convolve::f2x2, "F(2x2, 3x3): in bf16.")
      .value("F4X4", Convolve::f4x4, "F(4x4, 3x3): in float32 or bf16.");
}

void bind_instructions(py::module_& m) {
  bind_struct(m, "Map", "Where and how a feature map lies in an image's part of the arena.",
              optional("offset", &Map::offset), required("height", &Map::height),
              required("width", &Map::width), required("channels", &Map::channels),
              optional("border", &Map::border), optional("storage", &Map::storage),
              optional("scale", &Map::scale), optional("zero", &Map::zero))
      .def(py::init<>(), "No map.")
      .def("__bool__", [](const Map& map) { return static_cast<bool>(map); })
      .def(
          "at",
          [](Map map, int64_t offset) {
            map.offset = offset;
            return map;
          },
          "offset"_a, "Such a map at that place.")
      .def_property_readonly("bytes", &Map::bytes);
  bind_struct(m, "Load", "The images and a plane of ones, times c_in.", required("out", &Load::out),
              required("image_channels", &Load::image_channels));
  bind_struct(m, "BlockPrologue", "A block's input resampled, normalised and activated.",
              required("x", &BlockPrologue::x), optional("skip", &BlockPrologue::skip),
              optional("main", &BlockPrologue::main), optional("act", &BlockPrologue::act),
              optional("raw", &BlockPrologue::raw), optional("resample", &BlockPrologue::resample),
              optional("weight", &BlockPrologue::weight),
              optional("skip_weight", &BlockPrologue::skip_weight),
              optional("normalised", &BlockPrologue::normalised));
  bind_struct(m, "Convolve", "A convolution and all that happens to its result.",
              required("in_", &Convolve::in), optional("sum", &Convolve::sum),
              optional("out", &Convolve::out), optional("act", &Convolve::act),
              required("taps", &Convolve::taps), required("in_channels", &Convolve::in_channels),
              required("weights", &Convolve::weights), optional("winograd", &Convolve::winograd),
              optional("dequantise", &Convolve::dequantise),
              optional("modulation", &Convolve::modulation),
              optional("sum_weight", &Convolve::sum_weight), optional("limit", &Convolve::limit));
  bind_struct(m, "SplitHeads", "Queries, keys and values, normalised per head.",
              required("qkv", &SplitHeads::qkv), required("heads", &SplitHeads::heads),
              required("head_channels", &SplitHeads::head_channels),
              required("head_stride", &SplitHeads::head_stride), optional("q", &SplitHeads::q),
              optional("k", &SplitHeads::k), optional("v", &SplitHeads::v),
              required("pixels_stride", &SplitHeads::pixels_stride),
              optional("temperature", &SplitHeads::temperature))
      .def_property_readonly("query_bytes", &SplitHeads::query_bytes)
      .def_property_readonly("key_bytes", &SplitHeads::key_bytes)
      .def_property_readonly("value_bytes", &SplitHeads::value_bytes);
  bind_struct(m, "Attend", "softmax(q k^T / (sqrt(head_channels) temperature)) v.",
              required("from_", &Attend::from), required("out", &Attend::out));
  bind_struct(m, "Store", "A result, to a contiguous image.", required("in_", &Store::in),
              required("image_channels", &Store::image_channels),
              optional("result", &Store::result));
}

}  // namespace

void bind_plans(py::module_& m) {
  m.attr("LANES") = kLanes;
  m.attr("ALIGNMENT") = kAlignment;
  bind_enums(m);
  bind_instructions(m);
  py::class_<PlanBuilder> plan(
      m, "Plan", "Instructions of one evaluation of a U-Net; see csrc/engine/plan.h.");
  plan.def(py::init(&make_plan), py::kw_only(), "resolution"_a, "image_channels"_a, "image_bytes"_a,
           "weight_bytes"_a, "modulations"_a)
      .def("add", &PlanBuilder::add, "instruction"_a)
      .def("__len__",
           [](const PlanBuilder& builder) {
             return builder.read([](const Plan& p) { return p.instructions.size(); });
           })
      .def_property_readonly("instructions",
                             [](const PlanBuilder& builder) {
                               return builder.read([](const Plan& p) { return p.instructions; });
                             })
      .def_property_readonly("number", &PlanBuilder::number, "What the operator `evaluate` takes.")
      .def_property_readonly("scratch_bytes",
                             [](const PlanBuilder& builder) {
                               return builder.read([](const Plan& p) { return p.scratch_bytes; });
                             })
      .def(
          "arena_bytes",
          [](const PlanBuilder& builder, int64_t images, int64_t threads, int64_t chunk) {
            if (threads < 1) {
              throw py::value_error("Plan.arena_bytes: threads must be positive, got " +
                                    std::to_string(threads));
            }
            const Teams teams(images, threads);
            return builder.read(
                [&](const Plan& p) { return teams.count * p.team_bytes(chunk, teams.members); });
          },
          "images"_a, "threads"_a, "chunk"_a,
          "Of a batch that teams of threads take through the plan `chunk` images at a time.")
      .def_static(
          "teams",
          [](int64_t images, int64_t threads) {
            if (threads < 1) {
              throw py::value_error("Plan.teams: threads must be positive, got " +
                                    std::to_string(threads));
            }
            const Teams teams(images, threads);
            return std::pair(teams.count, teams.members);
          },
          "images"_a, "threads"_a, "How many teams share a batch, and how many threads each has.")
      .def(
          "shares",
          [](const PlanBuilder& builder, int64_t images, int64_t threads) {
            if (threads < 1 || images < 1) {
              throw py::value_error("Plan.shares: images and threads must be positive, got " +
                                    std::to_string(images) + " and " + std::to_string(threads));
            }
            return builder.read([&](const Plan& p) { return shares(p, images, threads); });
          },
          "images"_a, "threads"_a,
          "How much of each instruction is each thread's of a team, by instruction and thread.")
      .def(py::pickle(&plan_state, &plan_of_state));
  for (const auto& [name, member] : kOptions) {
    plan.def_property_readonly(name, [member = member](const PlanBuilder& builder) {
      return builder.read([&](const Plan& p) { return p.*member; });
    });
  }
}
