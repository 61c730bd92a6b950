// Finds out how a kernel was compiled, and launches it.
#include "cuda/launch.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <atomic>
#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>

namespace agf::cuda {
namespace {

std::mutex loading;  // guards `loader` and the handles of what it compiled
Loader loader;
std::atomic<Simulator> simulator{nullptr};

// A function of a library that the process may have: this file is built where CUDA is not.
template <class Function>
Function* find(const char* library, const char* name, int flags) {
  void* handle = dlopen(library, RTLD_LAZY | flags);
  void* symbol = handle ? dlsym(handle, name) : nullptr;
  if (!symbol) {
    throw std::runtime_error(std::string("launch: ") + library + " must have " + name +
                             ", got none; install a CUDA build of torch and NVIDIA's driver");
  }
  return reinterpret_cast<Function*>(symbol);
}

void* current_stream(int device) {
  // torch's stable ABI has this in every CUDA build, but in no CPU build.
  static auto* get = find<AOTITorchError(int32_t, void**)>(
      "libtorch_cuda.so", "aoti_torch_get_current_cuda_stream", RTLD_NOLOAD);
  void* stream = nullptr;
  if (get(device, &stream)) throw std::runtime_error("launch: torch has no current CUDA stream");
  return stream;
}

std::string type_names(const KernelId& id) {
  constexpr const char* names[] = {"float", "double", "__nv_bfloat16", "__half"};
  if (id.kinds == Types::one) return names[id.types];
  return std::string(names[id.types / 4]) + ", " + names[id.types % 4];
}

// Handles of what the loader compiled, by kernel, types and device.
void* loaded(const KernelId& id, int device) {
  static std::map<std::tuple<std::string, int, int>, void*> handles;
  const auto key = std::make_tuple(std::string(id.name), id.types, device);
  Loader load;
  {
    const std::lock_guard<std::mutex> lock(loading);
    const auto found = handles.find(key);
    if (found != handles.end()) return found->second;
    load = loader;
  }
  if (!load) throw std::runtime_error("launch: CUDA kernels must be compiled, got none");
  void* handle = load(id.name, type_names(id), device);  // takes long, and Python's lock
  const std::lock_guard<std::mutex> lock(loading);
  return handles.emplace(key, handle).first->second;
}

// Makes the context that torch uses on a device this thread's.
void enter_context(int device) {
  static auto* get = find<int(int*, int)>("libcuda.so.1", "cuDeviceGet", 0);
  static auto* retain = find<int(void**, int)>("libcuda.so.1", "cuDevicePrimaryCtxRetain", 0);
  static auto* enter = find<int(void*)>("libcuda.so.1", "cuCtxSetCurrent", 0);
  int handle = 0;
  void* context = nullptr;
  if (!get(&handle, device) && !retain(&context, handle)) enter(context);
}

// The driver's own launch, for what the loader compiled.
const char* launch_loaded(void* kernel, Grid grid, void** arguments, void* stream, int device) {
  using LaunchKernel = int(void* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                           unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                           void* stream, void** arguments, void** extra);
  static auto* run = find<LaunchKernel>("libcuda.so.1", "cuLaunchKernel", 0);
  static auto* describe = find<int(int, const char**)>("libcuda.so.1", "cuGetErrorString", 0);
  constexpr int kInvalidContext = 201;
  const auto attempt = [&] {
    return run(kernel, grid.x, grid.y, 1, kThreads, 1, 1, 0, stream, arguments, nullptr);
  };
  int error = attempt();
  if (error == kInvalidContext) {  // a thread's first call: only the runtime's find a context
    enter_context(device);
    error = attempt();
  }
  if (!error) return nullptr;
  const char* message = "unknown error";
  describe(error, &message);
  return message;
}

}  // namespace

void set_loader(Loader value) {
  const std::lock_guard<std::mutex> lock(loading);
  loader = std::move(value);
}
void set_simulator(Simulator value) { simulator.store(value, std::memory_order_relaxed); }
bool simulating() { return simulator.load(std::memory_order_relaxed) != nullptr; }

void launch(const KernelId& id, Grid grid, void* arguments, int device) {
  const char* error = nullptr;
  if (const Simulator simulate = simulator.load(std::memory_order_relaxed)) {
    error = simulate(id.name, id.types, grid.x, grid.y, arguments);
  } else {
    const torch::stable::accelerator::DeviceGuard guard(device);
    void* stream = current_stream(device);
    if (id.compiled) {
      error = compiled_launcher(id.compiled, grid, &arguments, stream);
    } else {
      error = launch_loaded(loaded(id, device), grid, &arguments, stream, device);
    }
  }
  if (error) {
    throw std::runtime_error(std::string("launch: ") + id.name + " must run on device " +
                             std::to_string(device) + ", got: " + error);
  }
}

}  // namespace agf::cuda
