// 3x3 convolution in training by Winograd's F(4x4, 3x3), products in float32, or F(2x2, 3x3),
// products in bfloat16: forward, and the gradients of images and weights, each in 1/4 or 4/9 of the
// products. A thread takes as many tiles at a time as keep their transforms near, so that nothing
// but images and weights moves through memory.
#include "winograd.h"

#include "cpu/chunks.h"
#include "cpu/kernels.h"
#include "tile.h"

namespace agf::AGF_ISA {
namespace {

// The matrices of the points lie a cache line further apart than they need: a power of two between
// them would put all that a transform reads or writes into one set of the L1 cache.
constexpr int64_t kPadding = 64;
constexpr int64_t kPanelSums = kMaxPanels * kLanes;

// Images and weights are stored in one type, what is multiplied in the same or in float32.
template <Storage stored, Storage factors, class Winograd>
struct Way : Winograd {
  using Winograd::kTile, Winograd::kWindow;
  static constexpr Storage kStored = stored, kFactors = factors;
  static constexpr int kPoints = kWindow * kWindow;
  static constexpr int kStoredBytes = storage_bytes(stored), kFactorBytes = storage_bytes(factors);
  static constexpr int kStep = 4 / kFactorBytes;  // values that a product takes at once
};
using Float32 = Way<Storage::f32, Storage::f32, WinogradF4>;
using Widened = Way<Storage::bf16, Storage::f32, WinogradF4>;
using Bfloat16 = Way<Storage::bf16, Storage::bf16, WinogradF2>;

template <class Body>
void by_way(ConvTypes types, Body&& body) {
  if (types.stored == Dtype::f32) return body(Float32{});
  if (types.factors == Dtype::f32) return body(Widened{});
  body(Bfloat16{});
}

// How many of `count` tiles, of `bytes` each, a round takes within the budget: a multiple of
// kPixels, about the same in every round.
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
template <class W>
struct Tiled {
  const char* data;
  int64_t height, width, bytes;  // of a pixel
  const char* zeros;             // for pixels outside

  // Where pixel (i, j) of a tile is, or one around it.
  auto at(int64_t tile) const {
    const int64_t across = width / W::kTile, down = height / W::kTile;
    const int64_t top = tile / across % down * W::kTile, left = tile % across * W::kTile;
    const char* corner = data + ((tile / across / down * height + top) * width + left) * bytes;
    return [this, top, left, corner](int64_t i, int64_t j) {
      const bool inside = top + i >= 0 && top + i < height && left + j >= 0 && left + j < width;
      return inside ? corner + (i * width + j) * bytes : zeros;
    };
  }
};

// store(tile, c, points) for each tile and run of kWidth channels c, `together` tiles at a time:
// points [together][out][out] come from the pixels source(tile)(i, j), [in][in] of each tile, by a
// transform of lines in both directions. Tiles past `count` are made of zeros.
template <Storage storage, int together, int in, int out, class Source, class Line, class Store>
void transform(int64_t count, int64_t channels, const char* zeros, const Source& source,
               const Line& line, const Store& store) {
  for (int64_t tile = 0; tile < count; tile += together) {
    const char* pixels[together][in][in];
    for (int e = 0; e < together; ++e) {
      const bool none = tile + e >= count;
      const auto pixel = source(none ? tile : tile + e);
      for (int i = 0; i < in; ++i) {
        for (int j = 0; j < in; ++j) pixels[e][i][j] = none ? zeros : pixel(i, j);
      }
    }
    for (int64_t c = 0; c < channels; c += kWidth) {
      Floats points[together][out][out];
#pragma GCC unroll 2
      for (int e = 0; e < together; ++e) {
        Floats half[out][in];
#pragma GCC unroll 8
        for (int j = 0; j < in; ++j) {
          Floats column[in];
#pragma GCC unroll 8
          for (int i = 0; i < in; ++i) {
            column[i] = load_floats<storage>(pixels[e][i][j] + c * storage_bytes(storage));
          }
          line(column, &half[0][j], in);
        }
#pragma GCC unroll 8
        for (int i = 0; i < out; ++i) line(half[i], points[e][i], 1);
      }
      store(tile, c, points);
    }
  }
}

// The input transform of tiles [first, first + count) of images `x`.
template <class W, int together, class Store>
void transform_input(const Tiled<W>& x, int64_t first, int64_t count, int64_t channels,
                     const Store& store) {
  transform<W::kStored, together, W::kWindow, W::kWindow>(
      count, channels, x.zeros,
      [&](int64_t tile) {
        return [pixel = x.at(first + tile)](int i, int j) { return pixel(i - 1, j - 1); };
      },
      [](const Floats* from, Floats* to, int stride) { W::input(from, to, stride); }, store);
}

// u [points][outputs / 16][inputs / step][16][step] from w [K, 3, 3, C]. Backward, outputs and
// inputs have changed places and the taps their order.
template <class W>
void weights_of(const char* w, char* u, const ConvShape& s, bool backward, int64_t begin,
                int64_t end) {
  const int64_t inputs = backward ? s.K : s.C, point_size = conv3x3_point(s.C, s.K);
  alignas(64) float taps[9][kLanes][kLanes];  // [tap][input][output]
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t first = 0; first < inputs; first += kLanes) {
      for (int tap = 0; tap < 9; ++tap) {
        for (int in = 0; in < kLanes; ++in) {
          for (int out = 0; out < kLanes; ++out) {
            const int64_t k = backward ? first + in : panel * kLanes + out;
            const int64_t c = backward ? panel * kLanes + out : first + in;
            const char* from =
                w + ((k * 9 + (backward ? 8 - tap : tap)) * s.C + c) * W::kStoredBytes;
            if constexpr (W::kStored == Storage::f32) {
              taps[tap][in][out] = load_as<float>(from);
            } else {
              taps[tap][in][out] = widen(load_as<bf16>(from));
            }
          }
        }
      }
      for (int in = 0; in < kLanes; in += W::kStep) {
        for (int out = 0; out < kLanes; out += kWidth) {
          Floats points[W::kStep][W::kWindow][W::kWindow];
          for (int e = 0; e < W::kStep; ++e) {
            Floats half[W::kWindow][3];
            for (int j = 0; j < 3; ++j) {
              Floats column[3];
              for (int i = 0; i < 3; ++i) {
                column[i] = load_as<Floats>(&taps[3 * i + j][in + e][out]);
              }
              W::weights(column, &half[0][j], 3);
            }
            for (int i = 0; i < W::kWindow; ++i) W::weights(half[i], points[e][i], 1);
          }
          for (int point = 0; point < W::kPoints; ++point) {
            const int i = point / W::kWindow, j = point % W::kWindow;
            const Ints stored =
                pack_stored<W::kFactors>(points[0][i][j], points[W::kStep - 1][i][j]);
            const int64_t row = (panel * inputs + first + in) * kLanes;
            std::memcpy(u + (point * point_size + row) * W::kFactorBytes + out * 4, &stored,
                        sizeof(stored));
          }
        }
      }
    }
  }
}

template <class W>
void products_of(const char* x, const char* u, char* y, const ConvShape& s, int64_t begin,
                 int64_t end) {
  const int64_t pixel = s.C * W::kFactorBytes, panels = s.K / kLanes, panel_bytes = pixel * kLanes;
  const int64_t point_bytes = conv3x3_point(s.C, s.K) * W::kFactorBytes;
  const int64_t tiles =
      tiles_at_once(end - begin, W::kPoints * (pixel + kPanelSums * 4), 600 << 10);
  const int64_t stride = tiles * pixel + kPadding, sums_stride = tiles * kPanelSums * 4 + kPadding;
  char* transformed = kept_memory(W::kPoints * (stride + sums_stride) + pixel);
  char* sums = transformed + W::kPoints * stride;
  char* zeros = sums + W::kPoints * sums_stride;
  std::memset(zeros, 0, pixel);
  const Tiled<W> images{x, s.H, s.W, s.C * W::kStoredBytes, zeros};
  const Tiled<W> results{y, s.H, s.W, s.K * W::kStoredBytes, nullptr};
  const int64_t no_tap = 0;
  for (int64_t first = begin; first < end; first += tiles) {
    const int64_t count = end - first < tiles ? end - first : tiles;
    transform_input<W, 1>(images, first, count, s.C,
                          [&](int64_t tile, int64_t c, const auto& points) {
                            char* to = transformed + tile * pixel + c * W::kFactorBytes;
                            for (int i = 0; i < W::kPoints; ++i) {
                              store_floats<W::kFactors>((&points[0][0][0])[i], to + i * stride);
                            }
                          });
    for (int64_t panel = 0; panel < panels;) {
      const int taken = next_panels(panels - panel);
      const int64_t width = taken * kLanes;
      for (int point = 0; point < W::kPoints; ++point) {
        for (int64_t tile = 0; tile < count; tile += kPixels) {
          const char* at[kPixels];
          for (int p = 0; p < kPixels; ++p) {
            at[p] = transformed + point * stride + (tile + p) * pixel;
          }
          multiply<W::kFactors>(
              taken, at, &no_tap, 1, pixel, u + point * point_bytes + panel * panel_bytes,
              kLanes * 4, panel_bytes,
              reinterpret_cast<float*>(sums + point * sums_stride) + tile * width);
        }
      }
      transform<Storage::f32, 1, W::kWindow, W::kTile>(
          count, width, nullptr,
          [&](int64_t tile) {
            return [=](int i, int j) {
              return sums + (i * W::kWindow + j) * sums_stride + tile * width * 4;
            };
          },
          [](const Floats* from, Floats* to, int stride) { W::output(from, to, stride); },
          [&](int64_t tile, int64_t k, const auto& pixels) {
            const auto pixel = results.at(first + tile);
            for (int i = 0; i < W::kTile; ++i) {
              for (int j = 0; j < W::kTile; ++j) {
                char* to = const_cast<char*>(pixel(i, j)) + (panel * kLanes + k) * W::kStoredBytes;
                store_floats<W::kStored>(pixels[0][i][j], to);
              }
            }
          });
      panel += taken;
    }
  }
}

template <class W>
void gradient_of(const char* x, const char* grad, float* du, const ConvShape& s, int64_t begin,
                 int64_t end, int64_t first_panel, int64_t last_panel) {
  const int64_t panels = last_panel - first_panel, C = s.C, K = panels * kLanes;
  const int64_t pixel = C * W::kStoredBytes, grad_pixel = s.K * W::kStoredBytes;
  // A round reads and writes all sums, so it takes more tiles where there are more of them.
  const int64_t sums = 4 * W::kPoints * C * K * 4;
  const int64_t budget = sums < 512 << 10 ? 512 << 10 : sums > 4 << 20 ? 4 << 20 : sums;
  const int64_t tiles = tiles_at_once(end - begin, W::kPoints * (C + K) * W::kFactorBytes, budget);
  const auto block = [&](int point, int64_t c, int64_t panel) {
    const int64_t number = c / kLanes * (s.K / kLanes) + first_panel + panel;
    return du + ((number * W::kPoints + point) * kLanes + c % kLanes) * kLanes;
  };
  // Products sum over tiles, kStep at once: [points][C / kPixels][steps][kPixels] of the images,
  // [points][panels][steps][16] of the gradient, four bytes each.
  const int64_t steps = tiles / W::kStep;
  const int64_t stride = steps * C * 4 + kPadding, grad_stride = steps * K * 4 + kPadding;
  char* inputs = kept_memory(W::kPoints * (stride + grad_stride) + pixel + grad_pixel);
  char* outputs = inputs + W::kPoints * stride;
  char* zeros = outputs + W::kPoints * grad_stride;
  std::memset(zeros, 0, pixel + grad_pixel);
  const Tiled<W> images{x, s.H, s.W, pixel, zeros};
  const Tiled<W> grads{grad + first_panel * kLanes * W::kStoredBytes, s.H, s.W, grad_pixel, zeros};
  const int64_t no_tap = 0;
  if (begin == end) {
    for (int64_t c = 0; c < C; c += kLanes) {
      std::memset(block(0, c, 0), 0, panels * W::kPoints * kLanes * kLanes * sizeof(float));
    }
  }
  Tile product;
  for (int64_t first = begin; first < end; first += tiles) {
    const int64_t count = end - first < tiles ? end - first : tiles;
    const auto stored = [](const auto& points, int i) {
      return pack_stored<W::kFactors>((&points[0][0][0])[i], (&points[W::kStep - 1][0][0])[i]);
    };
    transform_input<W, W::kStep>(
        images, first, count, C, [&](int64_t tile, int64_t c, const auto& points) {
          for (int i = 0; i < W::kPoints; ++i) {
            const Ints both = stored(points, i);
            for (int part = 0; part < kWidth; part += kPixels) {
              const int64_t row = (c + part) / kPixels * steps + tile / W::kStep;
              std::memcpy(inputs + i * stride + row * kPixels * 4,
                          reinterpret_cast<const char*>(&both) + part * 4, kPixels * 4);
            }
          }
        });
    transform<W::kStored, W::kStep, W::kTile, W::kWindow>(
        count, K, zeros, [&](int64_t tile) { return grads.at(first + tile); },
        [](const Floats* from, Floats* to, int stride) { W::output_adjoint(from, to, stride); },
        [&](int64_t tile, int64_t k, const auto& points) {
          const int64_t row = k / kLanes * steps + tile / W::kStep;
          for (int i = 0; i < W::kPoints; ++i) {
            const Ints both = stored(points, i);
            std::memcpy(outputs + i * grad_stride + (row * kLanes + k % kLanes) * 4, &both,
                        sizeof(both));
          }
        });
    const int64_t used = (count + W::kStep - 1) / W::kStep;
    for (int point = 0; point < W::kPoints; ++point) {
      for (int64_t c = 0; c < C; c += kPixels) {
        const char* at[kPixels];
        for (int p = 0; p < kPixels; ++p) at[p] = inputs + point * stride + (c * steps + p) * 4;
        for (int64_t panel = 0; panel < panels;) {
          const int taken = next_panels(panels - panel);
          multiply<W::kFactors, kPixels * 4>(
              taken, at, &no_tap, 1, used * kPixels * 4,
              outputs + point * grad_stride + panel * steps * kLanes * 4, kLanes * 4,
              steps * kLanes * 4, product.sums);
          for (int p = 0; p < kPixels; ++p) {
            for (int64_t i = 0; i < taken; ++i) {
              float* to = block(point, c + p, panel + i);
              const float* from = product.sums + (p * taken + i) * kLanes;
              const bool add = first != begin;
              AGF_VECTORISE
              for (int j = 0; j < kLanes; ++j) to[j] = add ? to[j] + from[j] : from[j];
            }
          }
          panel += taken;
        }
      }
    }
  }
}

// dw [K, 3, 3, C] from the sum of several du [C / 16][K / 16][points][16][16].
template <class W>
void gradient_weights_of(const float* du, int64_t parts, char* dw, const ConvShape& s,
                         int64_t begin, int64_t end) {
  constexpr int64_t kBlock = kLanes * kLanes;
  alignas(64) float taps[9][kLanes][kLanes];  // [tap][output][input]
  for (int64_t block = begin; block < end; ++block) {
    const int64_t c = block / (s.K / kLanes) * kLanes, k = block % (s.K / kLanes) * kLanes;
    for (int in = 0; in < kLanes; ++in) {
      for (int out = 0; out < kLanes; out += kWidth) {
        Floats half[3][W::kWindow];
        for (int j = 0; j < W::kWindow; ++j) {
          Floats column[W::kWindow];
          for (int i = 0; i < W::kWindow; ++i) {
            const int64_t point = block * W::kPoints + i * W::kWindow + j;
            const float* from = du + point * kBlock + in * kLanes + out;
            column[i] = load_as<Floats>(from);
            for (int64_t part = 1; part < parts; ++part) {
              column[i] += load_as<Floats>(from + part * W::kPoints * s.C * s.K);
            }
          }
          W::weights_adjoint(column, &half[0][j], W::kWindow);
        }
        for (int i = 0; i < 3; ++i) {
          Floats w[3];
          W::weights_adjoint(half[i], w, 1);
          for (int j = 0; j < 3; ++j) {
            for (int lane = 0; lane < kWidth; ++lane) taps[i * 3 + j][out + lane][in] = w[j][lane];
          }
        }
      }
    }
    for (int out = 0; out < kLanes; ++out) {
      for (int tap = 0; tap < 9; ++tap) {
        char* to = dw + (((k + out) * 9 + tap) * s.C + c) * W::kStoredBytes;
        for (int in = 0; in < kLanes; in += kWidth) {
          store_floats<W::kStored>(load_as<Floats>(&taps[tap][out][in]), to + in * W::kStoredBytes);
        }
      }
    }
  }
}

void conv3x3_weights(ConvTypes types, const void* w, void* u, ConvShape s, bool backward,
                     int64_t begin, int64_t end) {
  by_way(types, [&](auto way) {
    weights_of<decltype(way)>(static_cast<const char*>(w), static_cast<char*>(u), s, backward,
                              begin, end);
  });
}

void conv3x3_products(ConvTypes types, const void* x, const void* u, void* y, ConvShape s,
                      int64_t begin, int64_t end) {
  by_way(types, [&](auto way) {
    products_of<decltype(way)>(static_cast<const char*>(x), static_cast<const char*>(u),
                               static_cast<char*>(y), s, begin, end);
  });
}

void conv3x3_gradient(ConvTypes types, const void* x, const void* grad, float* du, ConvShape s,
                      int64_t begin, int64_t end, int64_t first_panel, int64_t last_panel) {
  by_way(types, [&](auto way) {
    gradient_of<decltype(way)>(static_cast<const char*>(x), static_cast<const char*>(grad), du, s,
                               begin, end, first_panel, last_panel);
  });
}

void conv3x3_gradient_weights(ConvTypes types, const float* du, int64_t parts, void* dw,
                              ConvShape s, int64_t begin, int64_t end) {
  by_way(types, [&](auto way) {
    gradient_weights_of<decltype(way)>(du, parts, static_cast<char*>(dw), s, begin, end);
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
