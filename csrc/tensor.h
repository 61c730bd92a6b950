// What the op families need of a tensor, on torch's stable ABI: checks with one-sentence
// messages, dense layouts, allocation, and the split of a loop over threads.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "cuda/launch.h"

namespace agf {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws what Python sees as a RuntimeError with this message alone.
template <class... Parts>
inline void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string shape_of(const Tensor& x) {
  std::ostringstream text;
  text << "[";
  for (int64_t i = 0; i < x.dim(); ++i) text << (i ? ", " : "") << x.size(i);
  text << "]";
  return text.str();
}

inline std::optional<Dtype> find_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::Double: return Dtype::f64;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: return std::nullopt;
  }
}

inline Dtype dtype_of(const char* function, const char* name, ScalarType type) {
  const auto found = find_dtype(type);
  check(found.has_value(), function, ": ", name,
        " must be float32, float64, bfloat16 or float16, got another type; convert it with .to()");
  return *found;
}

inline Dtype dtype_of(const char* function, const char* name, const Tensor& x) {
  return dtype_of(function, name, x.scalar_type());
}

inline void check_device(const char* function, const char* name, const Tensor& x,
                         const char* model_name, const Tensor& model) {
  const auto device = x.device(), expected = model.device();
  check(device.type() == expected.type() && device.index() == expected.index(), function, ": ",
        name, " must be on the device of ", model_name, ", got another; move it with .to()");
}

inline void check_like(const char* function, const char* name, const Tensor& x,
                       const char* model_name, const Tensor& model) {
  const auto sizes = x.sizes(), expected = model.sizes();
  check(std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()), function, ": ",
        name, " must have the shape of ", model_name, " ", shape_of(model), ", got ", shape_of(x),
        "; expand or slice it");
  check(x.scalar_type() == model.scalar_type(), function, ": ", name, " must have the dtype of ",
        model_name, ", got another; convert it with .to()");
  check_device(function, name, x, model_name, model);
}

inline void check_image(const char* function, const char* name, const Tensor& x) {
  check(x.dim() == 4, function, ": ", name, " must be an image batch [N, C, H, W], got ",
        shape_of(x), "; reshape it");
}

// The dense layout that an op works in and returns: channels-last where the input's channels lie
// next to each other, contiguous otherwise. `dense_format` in ops/_library.py is its twin.
enum class Format { contiguous, channels_last };

inline Format dense_format(const Tensor& x) {
  const bool channels_last =
      x.dim() == 4 && x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous();
  return channels_last ? Format::channels_last : Format::contiguous;
}

inline std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes, Format format) {
  if (format == Format::channels_last) {
    const int64_t c = sizes[1], h = sizes[2], w = sizes[3];
    return {h * w * c, 1, w * c, c};
  }
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
  return strides;
}

// x itself where it has the layout already, otherwise a copy that has it.
inline Tensor dense(const Tensor& x, Format format) {
  using torch::headeronly::MemoryFormat;
  if (format == Format::contiguous) {
    return x.is_contiguous() ? x : torch::stable::contiguous(x);
  }
  return torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
}

// An uninitialised tensor on the device of `like`.
inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType type, Format format,
                    const Tensor& like) {
  const auto strides = dense_strides(sizes, format);
  const auto device = like.device();
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
      static_cast<int32_t>(device.type()), device.index(), &handle));
  return Tensor(handle);
}

inline std::vector<int64_t> sizes_of(const Tensor& x) {
  const auto sizes = x.sizes();
  return {sizes.begin(), sizes.end()};
}

inline Tensor empty_like(const Tensor& x, Format format) {
  return empty(sizes_of(x), x.scalar_type(), format, x);
}

// Batch, channels and pixels of an image batch or of any [N, C, ...] tensor.
struct Image {
  int64_t N, C, S;
  explicit Image(const Tensor& x) : N(x.size(0)), C(x.size(1)), S(1) {
    for (int64_t i = 2; i < x.dim(); ++i) S *= x.size(i);
  }
};

// Every operator has one implementation for both kinds of device, which checks, allocates, and
// then either launches a CUDA kernel or loops on the CPU. CUDA kernels also take tensors of the CPU
// while the tests simulate a GPU.
inline bool runs_cuda_kernels(const Tensor& x) {
  return x.device().type() == torch::headeronly::DeviceType::CUDA || cuda::simulating();
}

template <class Kernel>
inline void launch(const Tensor& on, const Kernel& kernel, Dtype first, Dtype second = Dtype::f32) {
  cuda::launch(kernel, on.device().index(), first, second);
}

// body(begin, end) over [0, count), on as many threads as give each about 2^14 elements of work.
template <class Body>
inline void parallel(int64_t count, int64_t elements_each, const Body& body) {
  constexpr int64_t kElementsPerThread = 1 << 14;
  if (count <= 0) return;
  const int64_t grain =
      std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements_each));
  if (count <= grain) {
    body(int64_t{0}, count);
  } else {
    torch::stable::parallel_for(0, count, grain, body);
  }
}

}  // namespace agf
