// The Python module _C. Importing it registers the operators (static objects in the other files
// do that); what it carries itself is host-side facts. Tensors go through torch's dispatcher.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "build_config.h"
#include "cpu/amx.h"
#include "cpu/engine_kernels.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cuda/launch.h"
#include "engine/bindings.h"
#include "winograd.h"

namespace py = pybind11;

namespace {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < static_cast<int>(agf::Isa::amx_portable); ++i) {
    if (agf::isa_available(static_cast<agf::Isa>(i))) names.push_back(agf::kIsaNames[i]);
  }
  return names;
}

std::string isa_name() { return agf::kIsaNames[static_cast<int>(agf::isa())]; }

agf::Isa isa_of(const char* function, const std::string& name) {
  for (int i = 0; i < agf::kIsas; ++i) {
    if (name == agf::kIsaNames[i]) return static_cast<agf::Isa>(i);
  }
  throw py::value_error(std::string(function) +
                        ": isa must be one of build_info()['isa_available'], got " + name);
}

void set_isa(const std::string& name) { agf::set_isa(isa_of("set_isa", name)); }

// For tests: what is one instruction on AMX.
py::bytes tile_product(const std::string& isa_name, agf::Storage storage, const std::string& a,
                       const std::string& b, std::string c) {
  const char* function = "tile_product";
  const agf::Isa isa = isa_of(function, isa_name);
  const auto run = agf::tile_product_kernel.variants[static_cast<int>(isa)];
  if (!agf::isa_available(isa) || !run) {
    throw py::value_error("tile_product: isa must be amx where it is available, or amx_portable");
  }
  const auto bytes = static_cast<std::int64_t>(a.size() / 16);
  if (storage == agf::Storage::f32 || bytes == 0 || bytes > 64 || bytes % 4 != 0 ||
      a.size() % 16 != 0 || b.size() != a.size() || c.size() != 1024) {
    throw py::value_error(
        "tile_product: a, b and c must be [16, n, 4], [n, 16, 4] and [16, 16, 4] bytes of 1 to 16 "
        "steps of BF16 or U8");
  }
  run(storage, a.data(), b.data(), c.data(), bytes);
  return c;
}

// Lets Python compile kernels at first use: load(kernel, types, device) returns a CUfunction. Its
// exceptions become the operator's.
void set_kernel_loader(const py::function& load) {
  // Never destroyed: kernels may be loaded until the interpreter ends, and not after.
  auto* function = new py::function(load);
  agf::cuda::set_loader(
      [function](const std::string& kernel, const std::string& types, int device) {
        const py::gil_scoped_acquire lock;
        try {
          return reinterpret_cast<void*>((*function)(kernel, types, device).cast<std::uintptr_t>());
        } catch (const py::error_already_set& error) {
          throw std::runtime_error(py::str(error.value()).cast<std::string>());
        }
      });
}

// The matrix G of F(tile x tile, 3x3), by transforming the unit vectors.
template <class Transform>
std::vector<std::vector<double>> matrix_of() {
  std::vector<std::vector<double>> rows(Transform::kTo, std::vector<double>(Transform::kFrom));
  for (int column = 0; column < Transform::kFrom; ++column) {
    double unit[Transform::kFrom] = {}, values[Transform::kTo];
    unit[column] = 1;
    Transform::line(unit, values, 1);
    for (int row = 0; row < Transform::kTo; ++row) rows[row][column] = values[row] + 0.0;  // no -0
  }
  return rows;
}

std::vector<std::vector<double>> winograd_weight_matrix(int tile) {
  using namespace agf::common;
  if (tile == WinogradF2::kTile) return matrix_of<WinogradF2::Weights>();
  if (tile == WinogradF4::kTile) return matrix_of<WinogradF4::Weights>();
  throw py::value_error("winograd_weight_matrix: tile must be 2 or 4, got " + std::to_string(tile));
}

void set_simulator(std::uintptr_t simulator) {
  agf::cuda::set_simulator(reinterpret_cast<agf::cuda::Simulator>(simulator));
}

py::dict build_info() {
  using namespace py::literals;
  return py::dict("version"_a = AGF_VERSION, "compiler"_a = AGF_COMPILER,
                  "build_type"_a = AGF_BUILD_TYPE, "torch_built_with"_a = AGF_TORCH_VERSION,
                  "torch_oldest"_a = AGF_TORCH_OLDEST, "torch_tested"_a = AGF_TORCH_TESTED,
                  "pybind11"_a = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(
                      PYBIND11_VERSION_MINOR),
                  "cuda"_a = AGF_CUDA_STATE, "cuda_architectures"_a = AGF_CUDA_ARCHITECTURES,
                  "isa"_a = isa_name(), "isa_available"_a = available_isas(),
                  "amx"_a = agf::amx_refusal().empty() ? "available" : agf::amx_refusal());
}

}  // namespace

// Free-threaded Python need not take its lock back: what the module shares, which is the chosen
// instruction set, plans, threads, and kernels with their loader and simulator, is atomic or behind
// locks of its own.
PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  agf::choose_isa();
  m.doc() = "Compiled operators of autoguide_fast, registered with torch on import.";
  m.def("build_info", &build_info, "Facts of this build and of the instruction set in use.");
  m.def("set_isa", &set_isa, py::arg("isa"),
        "Choose the instruction set of the CPU loops, among build_info()['isa_available'].");
  bind_plans(m);
  m.def("winograd_weight_matrix", &winograd_weight_matrix, py::arg("tile"),
        "Rows of the matrix that takes three taps to the points of F(tile x tile, 3x3).");
  m.def("tile_product", &tile_product, py::arg("isa"), py::arg("storage"), py::arg("a"),
        py::arg("b"), py::arg("c"), "For tests: c + a b, one product of AMX tiles.");
  m.def("set_kernel_loader", &set_kernel_loader, py::arg("load"),
        "Compile CUDA kernels that nvcc did not build with load(kernel, types, device).");
  m.def("set_simulator", &set_simulator, py::arg("address"),
        "For tests: run CUDA kernels on CPU tensors through the function there; 0 ends that.");
}
