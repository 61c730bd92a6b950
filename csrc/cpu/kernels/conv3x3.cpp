// 3x3 convolution in training by Winograd's F(4x4, 3x3), products in float32, or F(2x2, 3x3),
// products in bfloat16: forward, and the gradients of images and weights, each in 1/4 or 4/9 of the
// products. A thread takes as many tiles at a time as keep their transforms near, so that nothing
// but images and weights moves through memory.
#include "cpu/chunks.h"
#include "cpu/kernels.h"
#include "winograd_tiles.h"

namespace agf::AGF_ISA {
namespace {

constexpr int64_t kPanelSums = kMaxPanels * kLanes;

// Images and weights are stored in one type, what is multiplied in the same or in float32.
using Float32 = WinogradPolicy<WinogradF4, Storage::f32, Storage::f32>;
using Widened = WinogradPolicy<WinogradF4, Storage::bf16, Storage::f32>;
using Bfloat16 = WinogradPolicy<WinogradF2, Storage::bf16, Storage::bf16>;

template <class Body>
void by_types(ConvTypes types, Body&& body) {
  if (types.stored == Dtype::f32) return body(Float32{});
  if (types.factors == Dtype::f32) return body(Widened{});
  body(Bfloat16{});
}

// How many of `count` tiles, of `bytes` each, are transformed at a time within the budget: a
// multiple of kPixels, about the same every time.
int64_t tiles_at_once(int64_t count, int64_t bytes, int64_t budget) {
  const int64_t fit = budget / bytes < kPixels ? int64_t{kPixels} : budget / bytes;
  const int64_t rounds = (count + fit - 1) / fit > 0 ? (count + fit - 1) / fit : 1;
  return (count + rounds * kPixels - 1) / (rounds * kPixels) * kPixels;
}

// A thread's memory for its transforms. Kept between calls: fresh pages from the system would take
// about as long as what is done in them.
char* kept_memory(int64_t bytes) {
  struct Kept {
    char* data = nullptr;
    int64_t bytes = 0;
    ~Kept() { std::free(data); }
  };
  static thread_local Kept kept;
  if (bytes > kept.bytes) {
    std::free(kept.data);
    kept.bytes = (bytes + 63) / 64 * 64;
    kept.data = static_cast<char*>(std::aligned_alloc(64, kept.bytes));
    if (!kept.data) std::abort();
  }
  return kept.data;
}

// Images [N, H, W, channels] in tiles.
template <class P>
struct Images {
  const char* data;
  int64_t height, width, bytes;  // of a pixel

  TileRange tiles(int64_t begin, int64_t end) const {
    return {begin, end - begin, height / P::kTile, width / P::kTile};
  }
  // Of a tile's first pixel.
  const char* corner(const PixelIterator& at) const {
    return data + ((at.image * height + at.y * P::kTile) * width + at.x * P::kTile) * bytes;
  }
  StridedWindow tile(const PixelIterator& at) const { return {corner(at), width * bytes, bytes}; }
};

// A source of input windows, which reach one pixel past the tile: `zeros` are read around the
// image.
template <class P>
struct PaddedWindows {
  Images<P> images;
  const char* zeros;

  struct Window {
    const char* pixels[P::kWindow][P::kWindow];
    const char* operator()(int i, int j) const { return pixels[i][j]; }
  };

  Window operator()(const PixelIterator& at, int64_t, bool valid) const {
    const int64_t top = at.y * P::kTile - 1, left = at.x * P::kTile - 1;
    const char* corner = images.corner(at) - (images.width + 1) * images.bytes;
    Window window;
    for (int i = 0; i < P::kWindow; ++i) {
      for (int j = 0; j < P::kWindow; ++j) {
        const bool inside = valid && top + i >= 0 && top + i < images.height && left + j >= 0 &&
                            left + j < images.width;
        window.pixels[i][j] = inside ? corner + (i * images.width + j) * images.bytes : zeros;
      }
    }
    return window;
  }
};

// taps [9][inputs][outputs] of 16 inputs and 16 outputs, from w [K, 3, 3, C]. Backward, outputs and
// inputs have changed places and the taps their order.
template <class P>
void gather_taps(const char* w, const ConvShape& s, bool backward, int64_t input, int64_t output,
                 float (*taps)[kLanes][kLanes]) {
  for (int tap = 0; tap < 9; ++tap) {
    for (int in = 0; in < kLanes; ++in) {
      for (int out = 0; out < kLanes; ++out) {
        const int64_t k = backward ? input + in : output + out;
        const int64_t c = backward ? output + out : input + in;
        const char* from = w + ((k * 9 + (backward ? 8 - tap : tap)) * s.C + c) * P::kStoredBytes;
        if constexpr (P::kStored == Storage::f32) {
          taps[tap][in][out] = load_as<float>(from);
        } else {
          taps[tap][in][out] = widen(load_as<bf16>(from));
        }
      }
    }
  }
}

// u [points][outputs / 16][inputs / step][16][step] from w [K, 3, 3, C].
template <class P>
void weights_of(const char* w, char* u, const ConvShape& s, bool backward, int64_t begin,
                int64_t end) {
  const int64_t inputs = backward ? s.K : s.C;
  const int64_t point_bytes = conv3x3_point(s.C, s.K, P::kFactorBytes);
  alignas(64) float taps[9][kLanes][kLanes];
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t first = 0; first < inputs; first += kLanes) {
      gather_taps<P>(w, s, backward, first, panel * kLanes, taps);
      for (int in = 0; in < kLanes; in += P::kStep) {
        for (int out = 0; out < kLanes; out += kWidth) {
          char* to = u + (panel * inputs + first + in) * kLanes * P::kFactorBytes + out * 4;
          pack_points<P>(
              [&](int e, const auto& store) {
                transform_square<typename P::Weights>(
                    [&](int i, int j) { return load_as<Floats>(&taps[3 * i + j][in + e][out]); },
                    store);
              },
              [&](int point, Ints packed) {
                std::memcpy(to + point * point_bytes, &packed, sizeof(packed));
              });
        }
      }
    }
  }
}

template <class P>
void products_of(const char* x, const char* u, char* y, const ConvShape& s, int64_t begin,
                 int64_t end) {
  const int64_t pixel = s.C * P::kFactorBytes, panels = s.K / kLanes;
  const int64_t tiles =
      tiles_at_once(end - begin, P::kPoints * (pixel + kPanelSums * 4), 600 << 10);
  const int64_t stride = tiles * pixel + kPointPadding;
  const int64_t products = P::kPoints * (tiles * kPanelSums * 4 + kPointPadding);
  const PointMatrices v{kept_memory(P::kPoints * stride + products + pixel), stride};
  char* zeros = v[P::kPoints] + products;
  std::memset(zeros, 0, pixel);
  const Images<P> images{x, s.H, s.W, s.C * P::kStoredBytes};
  const Images<P> results{y, s.H, s.W, s.K * P::kStoredBytes};
  convolve_tiles<P>(
      images.tiles(begin, end), tiles, s.C, 0, panels, v, v[P::kPoints],
      PaddedWindows<P>{images, zeros},
      PackedWeights<P>{u, conv3x3_point(s.C, s.K, P::kFactorBytes), pixel * kLanes},
      [results](const PixelIterator& at, int64_t first, int64_t, int64_t k, const auto& transform) {
        const StridedWindow tile = results.tile(at);
        transform(0, [&](int i, int j, Floats value) {
          char* to = const_cast<char*>(tile(i, j)) + (first + k) * P::kStoredBytes;
          store_floats<P::kStored>(value, to);
        });
      });
}

// The gradient of the weights at the points, du [C / 16][K / 16][points][16][16], from the sums
// over some tiles, for panels [first_panel, last_panel) of K / 16.
template <class P>
class PointGradient {
 public:
  PointGradient(const char* x, const char* grad, float* du, const ConvShape& s, int64_t begin,
                int64_t end, int64_t first_panel, int64_t last_panel)
      : s_(s),
        du_(du),
        first_panel_(first_panel),
        panels_(last_panel - first_panel),
        outputs_(panels_ * kLanes),
        images_{x, s.H, s.W, s.C * P::kStoredBytes},
        gradients_{grad + first_panel * kLanes * P::kStoredBytes, s.H, s.W, s.K * P::kStoredBytes},
        all_(images_.tiles(begin, end)) {
    // All sums are read and written for each lot of tiles: where there are more of them, lots are
    // larger.
    const int64_t sums = 4 * P::kPoints * s.C * outputs_ * 4;
    const int64_t budget = sums < 512 << 10 ? 512 << 10 : sums > 4 << 20 ? 4 << 20 : sums;
    tiles_ = tiles_at_once(all_.count, P::kPoints * (s.C + outputs_) * P::kFactorBytes, budget);
    steps_ = tiles_ / P::kStep;
    const int64_t zero_bytes = images_.bytes + gradients_.bytes;
    v_.stride = steps_ * s.C * 4 + kPointPadding;
    g_.stride = steps_ * outputs_ * 4 + kPointPadding;
    v_.data = kept_memory(P::kPoints * (v_.stride + g_.stride) + zero_bytes);
    g_.data = v_[P::kPoints];
    zeros_ = g_[P::kPoints];
    std::memset(g_[P::kPoints], 0, zero_bytes);
  }

  void compute() const {
    if (all_.count == 0) return clear();
    TileRange lot = all_;
    for (int64_t left = all_.count; left > 0; left -= tiles_, lot.first += tiles_) {
      lot.count = left < tiles_ ? left : tiles_;
      transform_images(lot);
      transform_gradients(lot);
      multiply_points((lot.count + P::kStep - 1) / P::kStep, lot.first != all_.first);
    }
  }

 private:
  // Where the sums of input channel c and a panel are, at one point.
  float* block(int point, int64_t c, int64_t panel) const {
    const int64_t number = c / kLanes * (s_.K / kLanes) + first_panel_ + panel;
    return du_ + ((number * P::kPoints + point) * kLanes + c % kLanes) * kLanes;
  }

  void clear() const {
    for (int64_t c = 0; c < s_.C; c += kLanes) {
      std::memset(block(0, c, 0), 0, panels_ * P::kPoints * kLanes * kLanes * sizeof(float));
    }
  }

  // v [points][C / kPixels][steps][kPixels], of kStep tiles each.
  void transform_images(const TileRange& lot) const {
    transform_tiles<typename P::Input, P::kStored, P::kStep>(
        lot, s_.C, PaddedWindows<P>{images_, zeros_},
        [v = v_, steps = steps_](const PixelIterator&, int64_t tile, int64_t c,
                                 const auto& transform) {
          pack_points<P>(transform, [&](int point, Ints packed) {
            for (int part = 0; part < kWidth; part += kPixels) {
              const int64_t row = (c + part) / kPixels * steps + tile / P::kStep;
              std::memcpy(v[point] + row * kPixels * 4,
                          reinterpret_cast<const char*>(&packed) + part * 4, kPixels * 4);
            }
          });
        });
  }

  // g [points][panels][steps][16], of kStep tiles each.
  void transform_gradients(const TileRange& lot) const {
    transform_tiles<typename P::OutputAdjoint, P::kStored, P::kStep>(
        lot, outputs_,
        [gradients = gradients_, zeros = zeros_](const PixelIterator& at, int64_t, bool valid) {
          return valid ? gradients.tile(at) : StridedWindow{zeros, 0, 0};
        },
        [g = g_, steps = steps_](const PixelIterator&, int64_t tile, int64_t k,
                                 const auto& transform) {
          const int64_t row = k / kLanes * steps + tile / P::kStep;
          pack_points<P>(transform, [&](int point, Ints packed) {
            std::memcpy(g[point] + (row * kLanes + k % kLanes) * 4, &packed, sizeof(packed));
          });
        });
  }

  // du = or += v^T g, sums over `steps` steps.
  void multiply_points(int64_t steps, bool add) const {
    Tile product;
    for (int point = 0; point < P::kPoints; ++point) {
      for (int64_t c = 0; c < s_.C; c += kPixels) {
        const StridedRows rows{v_[point] + c * steps_ * 4, 4};
        for (int64_t panel = 0; panel < panels_;) {
          const int taken = next_panels(panels_ - panel);
          multiply<P::kFactors, kPixels * 4>(taken, rows, OneTap{}, steps * kPixels * 4,
                                             g_[point] + panel * steps_ * kLanes * 4, kLanes * 4,
                                             steps_ * kLanes * 4, product.sums);
          for (int p = 0; p < kPixels; ++p) {
            for (int64_t i = 0; i < taken; ++i) {
              float* to = block(point, c + p, panel + i);
              const float* from = product.sums + (p * taken + i) * kLanes;
              AGF_VECTORISE
              for (int j = 0; j < kLanes; ++j) to[j] = add ? to[j] + from[j] : from[j];
            }
          }
          panel += taken;
        }
      }
    }
  }

  ConvShape s_;
  float* du_;
  int64_t first_panel_, panels_, outputs_;
  Images<P> images_, gradients_;
  TileRange all_;
  int64_t tiles_, steps_;  // tiles that are transformed at a time, in steps of kStep
  PointMatrices v_, g_;    // what is multiplied: of the images, of the gradient
  const char* zeros_;
};

// dw [K, 3, 3, C] from the sum of several du [C / 16][K / 16][points][16][16].
template <class P>
void gradient_weights_of(const float* du, int64_t parts, char* dw, const ConvShape& s,
                         int64_t begin, int64_t end) {
  using Transform = typename P::WeightsAdjoint;
  constexpr int64_t kBlock = kLanes * kLanes;
  alignas(64) float taps[9][kLanes][kLanes];  // [tap][output][input]
  for (int64_t block = begin; block < end; ++block) {
    const int64_t c = block / (s.K / kLanes) * kLanes, k = block % (s.K / kLanes) * kLanes;
    for (int in = 0; in < kLanes; ++in) {
      for (int out = 0; out < kLanes; out += kWidth) {
        const auto sum = [&](int i, int j) {
          const int64_t point = block * P::kPoints + i * P::kWindow + j;
          const float* from = du + point * kBlock + in * kLanes + out;
          Floats total = load_as<Floats>(from);
          for (int64_t part = 1; part < parts; ++part) {
            total += load_as<Floats>(from + part * P::kPoints * s.C * s.K);
          }
          return total;
        };
        Floats w[3][3];
        transform_square<Transform>(sum, [&](int i, int j, Floats value) { w[i][j] = value; });
        for (int tap = 0; tap < 9; ++tap) {
          for (int lane = 0; lane < kWidth; ++lane) {
            taps[tap][out + lane][in] = w[tap / 3][tap % 3][lane];
          }
        }
      }
    }
    for (int out = 0; out < kLanes; ++out) {
      for (int tap = 0; tap < 9; ++tap) {
        char* to = dw + (((k + out) * 9 + tap) * s.C + c) * P::kStoredBytes;
        for (int in = 0; in < kLanes; in += kWidth) {
          store_floats<P::kStored>(load_as<Floats>(&taps[tap][out][in]), to + in * P::kStoredBytes);
        }
      }
    }
  }
}

void conv3x3_weights(ConvTypes types, const void* w, void* u, ConvShape s, bool backward,
                     int64_t begin, int64_t end) {
  by_types(types, [&](auto policy) {
    weights_of<decltype(policy)>(static_cast<const char*>(w), static_cast<char*>(u), s, backward,
                                 begin, end);
  });
}

void conv3x3_products(ConvTypes types, const void* x, const void* u, void* y, ConvShape s,
                      int64_t begin, int64_t end) {
  by_types(types, [&](auto policy) {
    products_of<decltype(policy)>(static_cast<const char*>(x), static_cast<const char*>(u),
                                  static_cast<char*>(y), s, begin, end);
  });
}

void conv3x3_gradient(ConvTypes types, const void* x, const void* grad, float* du, ConvShape s,
                      int64_t begin, int64_t end, int64_t first_panel, int64_t last_panel) {
  by_types(types, [&](auto policy) {
    PointGradient<decltype(policy)>(static_cast<const char*>(x), static_cast<const char*>(grad), du,
                                    s, begin, end, first_panel, last_panel)
        .compute();
  });
}

void conv3x3_gradient_weights(ConvTypes types, const float* du, int64_t parts, void* dw,
                              ConvShape s, int64_t begin, int64_t end) {
  by_types(types, [&](auto policy) {
    gradient_weights_of<decltype(policy)>(du, parts, static_cast<char*>(dw), s, begin, end);
  });
}

const RegisterCpuKernel registered[] = {
    {conv3x3_weights_kernel, Isa::AGF_ISA, conv3x3_weights},
    {conv3x3_products_kernel, Isa::AGF_ISA, conv3x3_products},
    {conv3x3_gradient_kernel, Isa::AGF_ISA, conv3x3_gradient},
    {conv3x3_gradient_weights_kernel, Isa::AGF_ISA, conv3x3_gradient_weights},
};

}  // namespace
}  // namespace agf::AGF_ISA
