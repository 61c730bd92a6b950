// AMX's eight tile registers, of 16 rows of 64 bytes each: in hardware, and in plain C++ with the
// same arithmetic to the bit, so that what is built on them is tested on every machine.
//
// Four of them, 0 to 3, hold sums, 16 rows of 16 float32 or int32. The factors are A, in 4 and 5,
// with a row for each row of sums, and B, in 6 and 7, with 64 bytes for each four bytes of such a
// row: that is how the engine packs weights (autoguide_fast/engine/pack.py).
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/chunks.h"
#include "engine/plan.h"

namespace agf::AGF_ISA {

constexpr int kTileRows = 16, kTileBytes = 64;  // of a row, at most

#if defined(AGF_TILES_IN_HARDWARE)

// What LDTILECFG reads (its table in Intel's SDM, vol. 2).
struct TileConfiguration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {};  // of a row, for each tile
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfiguration) == 64);

// The registers of this thread from here to the end of the scope; whatever else uses tiles has to
// configure them for itself anyway, and a thread without any costs less to switch and less power.
class Tiles {
 public:
  // Rows of A have `step_bytes`, a multiple of 4.
  explicit Tiles(int64_t step_bytes) {
    TileConfiguration shape;
    for (int t = 0; t < 8; ++t) {
      shape.bytes[t] = static_cast<std::uint16_t>(t == 4 || t == 5 ? step_bytes : kTileBytes);
      shape.rows[t] = static_cast<std::uint8_t>(t >= 6 ? step_bytes / 4 : kTileRows);
    }
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }
  ~Tiles() { asm volatile("tilerelease" : : : "memory"); }
  Tiles(const Tiles&) = delete;

  template <int tile>
  AGF_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
  }
  // Rows lie `stride` bytes apart in memory.
  template <int tile>
  AGF_INLINE void load(const char* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  AGF_INLINE void store(char* to, int64_t stride) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
  }
  // sums += A B, where A has bf16 as B, or u8 and B int8.
  template <Storage storage, int sums, int a, int b>
  AGF_INLINE void dot() {
    if constexpr (storage == Storage::bf16) {
      asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(b));
    } else {
      asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(b));
    }
  }
};

#else

// The arithmetic of TDPBF16PS is that of its pseudo-code in Intel's SDM, vol. 2: within a tile the
// first elements of all pairs are summed by fused multiply-adds from zero, the second ones
// likewise, then the two sums, and that is added to what the tile of sums had. Each of these rounds
// to nearest even, takes denormals for zero and gives zero for them, whatever MXCSR says.
class Tiles {
 public:
  explicit Tiles(int64_t step_bytes) : step_bytes_(step_bytes) {}
  Tiles(const Tiles&) = delete;

  template <int tile>
  void zero() {
    std::memset(data_[tile], 0, sizeof(data_[tile]));
  }
  template <int tile>
  void load(const char* from, int64_t stride) {
    for (int row = 0; row < rows<tile>(); ++row) {
      std::memcpy(data_[tile][row], from + row * stride, bytes<tile>());
    }
  }
  template <int tile>
  void store(char* to, int64_t stride) const {
    for (int row = 0; row < rows<tile>(); ++row) {
      std::memcpy(to + row * stride, data_[tile][row], bytes<tile>());
    }
  }
  template <Storage storage, int sums, int a, int b>
  void dot() {
    if constexpr (storage == Storage::bf16) {
      dot_bf16(data_[sums], data_[a], data_[b]);
    } else {
      dot_u8(data_[sums], data_[a], data_[b]);
    }
  }

 private:
  using Tile = char[kTileRows][kTileBytes];

  template <int tile>
  int64_t rows() const {
    return tile >= 6 ? step_bytes_ / 4 : kTileRows;
  }
  template <int tile>
  int64_t bytes() const {
    return tile == 4 || tile == 5 ? step_bytes_ : kTileBytes;
  }

  // To float32, kept as double: double holds products of bf16 exactly, and has more than twice
  // float32's digits and two more, so that a sum rounded to it first is rounded to float32 as if at
  // once. What would be below 2^-126 after rounding, with any exponent, becomes zero.
  static double rounded(double x) {
    constexpr double least = 0x1p-126 - 0x1p-151;
    const double flushed = __builtin_fabs(x) < least ? __builtin_copysign(0.0, x) : x;
    return static_cast<float>(flushed);
  }
  static double value(std::uint16_t stored) {  // denormals have an exponent of zero
    return widen(bf16{static_cast<std::uint16_t>(stored & 0x7f80 ? stored : stored & 0x8000)});
  }

  void dot_bf16(Tile& sums, const Tile& a, const Tile& b) const {
    const int64_t steps = step_bytes_ / 4;
    double factors[kTileRows][2][kLanes];
    for (int64_t k = 0; k < steps; ++k) {
      std::uint16_t pairs[2 * kLanes];
      std::memcpy(pairs, b[k], sizeof(pairs));
      for (int n = 0; n < kLanes; ++n) {
        for (int half = 0; half < 2; ++half) factors[k][half][n] = value(pairs[2 * n + half]);
      }
    }
    for (int m = 0; m < kTileRows; ++m) {
      double totals[2][kLanes] = {};
      for (int64_t k = 0; k < steps; ++k) {
        std::uint16_t pair[2];
        std::memcpy(pair, a[m] + 4 * k, sizeof(pair));
        for (int half = 0; half < 2; ++half) {
          const double x = value(pair[half]);
          AGF_VECTORISE
          for (int n = 0; n < kLanes; ++n) {
            totals[half][n] = rounded(totals[half][n] + x * factors[k][half][n]);
          }
        }
      }
      float row[kLanes];
      std::memcpy(row, sums[m], sizeof(row));
      for (int n = 0; n < kLanes; ++n) {
        const double both = rounded(totals[0][n] + totals[1][n]);
        row[n] = static_cast<float>(rounded(rounded(row[n]) + both));
      }
      std::memcpy(sums[m], row, sizeof(row));
    }
  }

  void dot_u8(Tile& sums, const Tile& a, const Tile& b) const {
    for (int m = 0; m < kTileRows; ++m) {
      std::uint32_t row[kLanes];  // which wraps around, as the processor's
      std::memcpy(row, sums[m], sizeof(row));
      for (int64_t i = 0; i < step_bytes_; ++i) {
        const std::int32_t x = static_cast<unsigned char>(a[m][i]);
        for (int n = 0; n < kLanes; ++n) {
          const auto w = static_cast<signed char>(b[i / 4][4 * n + i % 4]);
          row[n] += static_cast<std::uint32_t>(x * w);
        }
      }
      std::memcpy(sums[m], row, sizeof(row));
    }
  }

  int64_t step_bytes_;
  alignas(64) Tile data_[8];
};

#endif

}  // namespace agf::AGF_ISA
