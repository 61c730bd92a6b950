// Attention on AMX's tiles, for maps in bf16 of whole tiles of pixels, as all are whose sides 4
// divides: 16 queries at a time. Keys and values are as the other variants for bf16 read them.
#include "cpu/engine_kernels.h"
#include "cpu/kernels/attention.h"
#include "parts.h"
#include "tile.h"

namespace agf::AGF_ISA {
namespace {

constexpr int kPanels = 2;  // that one product takes

// The largest step in which both the channels of a query and the weights of all values can be
// taken, so that one configuration of the tiles does: 32 bytes or more, as both are multiples of
// it.
int64_t common_step(int64_t query_bytes, int64_t weight_bytes) {
  int64_t step = kTileBytes;
  while (query_bytes % step != 0 || weight_bytes % step != 0) step -= 4;
  return step;
}

// The second factor of a product: rows of 64 bytes in each panel, all distances in bytes.
struct Panels {
  const char* first;
  int64_t row, panel;
};

// sums [16][16 * panels] of rows, `stride` bytes apart, of `bytes` each.
template <int panels>
void multiply_rows(Tiles& tiles, const char* rows, int64_t stride, int64_t bytes, int64_t step,
                   Panels right, float* sums) {
  tiles.zero<0>();
  if constexpr (panels == 2) tiles.zero<1>();
  for (int64_t i = 0; i < bytes; i += step) {
    const char* factors = right.first + i / 4 * right.row;
    tiles.load<4>(rows + i, stride);
    tiles.load<6>(factors, right.row);
    tiles.dot<Storage::bf16, 0, 4, 6>();
    if constexpr (panels == 2) {
      tiles.load<7>(factors + right.panel, right.row);
      tiles.dot<Storage::bf16, 1, 4, 7>();
    }
  }
  tiles.store<0>(reinterpret_cast<char*>(sums), panels * kTileBytes);
  if constexpr (panels == 2) {
    tiles.store<1>(reinterpret_cast<char*>(sums + kLanes), panels * kTileBytes);
  }
}

void attend_on_tiles(const Attend& a, const ExecutionContext& f) {
  const SplitHeads& s = a.from;
  const int64_t pixels = s.qkv.height * s.qkv.width, blocks = pixels / kTileRows;
  const int64_t key_panels = pixels / kLanes, value_panels = s.head_stride / kLanes;
  const int64_t query_bytes = 2 * s.head_stride, weight_bytes = 2 * pixels;
  const int64_t step = common_step(query_bytes, weight_bytes);
  const Share mine = share_on_tiles(a, f);
  if (mine.begin == mine.end) return;
  Tiles tiles(step);
  alignas(64) float sums[kTileRows * kPanels * kLanes];
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    const int64_t first = item % blocks * kTileRows;
    const int64_t head = item / blocks % s.heads, image = item / blocks / s.heads;
    const Head from(s, f, image, head, 2);
    float totals[kTileRows] = {};
    for (int64_t panel = 0; panel < key_panels;) {
      const int taken = key_panels - panel < kPanels ? 1 : kPanels;
      const int64_t count = taken * kLanes, panel_bytes = kLanes * query_bytes;
      const auto multiply = taken == 2 ? multiply_rows<2> : multiply_rows<1>;
      multiply(tiles, from.q + first * query_bytes, query_bytes, query_bytes, step,
               {from.k + panel * panel_bytes, kTileBytes, panel_bytes}, sums);
      for (int p = 0; p < kTileRows; ++p) {
        exponentials<Storage::bf16>(sums + p * count, count, count,
                                    f.scratch + p * weight_bytes + panel * kLanes * 2, totals + p);
      }
      panel += taken;
    }
    for (int64_t panel = 0; panel < value_panels;) {
      const int taken = value_panels - panel < kPanels ? 1 : kPanels;
      const int64_t count = taken * kLanes;
      const auto multiply = taken == 2 ? multiply_rows<2> : multiply_rows<1>;
      multiply(tiles, f.scratch, weight_bytes, weight_bytes, step,
               {from.v + panel * kTileBytes, s.head_stride * 4, kTileBytes}, sums);
      PixelIterator pixel(first, s.qkv.height, s.qkv.width);
      for (int p = 0; p < kTileRows; ++p, pixel.next()) {
        float* y = sums + p * count;
        const float inverse = 1 / totals[p];
        AGF_VECTORISE
        for (int64_t c = 0; c < count; ++c) y[c] *= inverse;
        put(y,
            f.pixel(a.out, image, pixel.y, pixel.x) +
                (head * s.head_stride + panel * kLanes) * storage_bytes(a.out.storage),
            count, a.out);
      }
      panel += taken;
    }
  }
}

void split_heads(const SplitHeads& s, const ExecutionContext& f) {
  if (suits_tiles(s)) return split_heads_stored<Storage::bf16>(s, f);
  split_heads_kernel.before(Isa::AGF_ISA)(s, f);
}

void attend(const Attend& a, const ExecutionContext& f) {
  if (!suits_tiles(a.from)) return attend_kernel.before(Isa::AGF_ISA)(a, f);
  if (a.from.temperature == 0) return copy_values<Storage::bf16>(a, f);
  attend_on_tiles(a, f);
}

const RegisterCpuKernel registered[] = {
    {split_heads_kernel, Isa::AGF_ISA, split_heads},
    {attend_kernel, Isa::AGF_ISA, attend},
};

}  // namespace
}  // namespace agf::AGF_ISA
