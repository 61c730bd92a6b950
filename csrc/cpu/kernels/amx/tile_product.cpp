// One product of tiles by itself: to try what AMX does before it is relied on, and for tests.
#include "cpu/engine_kernels.h"
#include "tile.h"

namespace agf::AGF_ISA {
namespace {

template <Storage storage>
void multiply(const char* a, const char* b, char* c, int64_t bytes) {
  Tiles tiles(bytes);
  tiles.load<0>(c, kTileBytes);
  tiles.load<4>(a, bytes);
  tiles.load<6>(b, kTileBytes);
  tiles.dot<storage, 0, 4, 6>();
  tiles.store<0>(c, kTileBytes);
}

void tile_product(Storage storage, const char* a, const char* b, char* c, int64_t bytes) {
  storage == Storage::bf16 ? multiply<Storage::bf16>(a, b, c, bytes)
                           : multiply<Storage::u8>(a, b, c, bytes);
}

const RegisterCpuKernel registered[] = {{tile_product_kernel, Isa::AGF_ISA, tile_product}};

}  // namespace
}  // namespace agf::AGF_ISA
