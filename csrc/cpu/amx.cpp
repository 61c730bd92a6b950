// Asks for AMX, and tries it before anything relies on it.
#include "cpu/amx.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/engine_kernels.h"

namespace agf {
namespace {

#if defined(__x86_64__) && defined(__linux__)
bool processor_has_tiles() {
  constexpr unsigned needed = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & needed) == needed;
}

// Whether the system saves tiles and their configuration when it switches threads: XCR0.
bool system_saves_tiles() {
  constexpr unsigned os_uses_xsave = 1u << 27, tiles = 1u << 17 | 1u << 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & os_uses_xsave)) return false;
  asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (a & tiles) == tiles;
}

// Linux, Documentation/arch/x86/xstate.rst: 8 KiB more for the state of each thread that uses them.
bool allowed() {
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

// Small integers, which every order of summation adds exactly: what is tried is that tiles are
// loaded, multiplied and stored at all, not how the processor rounds.
bool multiplies_as_expected(Storage storage) {
  const auto run = tile_product_kernel.variants[static_cast<int>(Isa::amx)];
  const auto expected = tile_product_kernel.variants[static_cast<int>(Isa::amx_portable)];
  alignas(64) char a[1024], b[1024], c[2][1024] = {};
  for (int i = 0; i < 1024; ++i) {
    if (storage == Storage::u8) {
      a[i] = static_cast<char>(i * 37 % 256);
      b[i] = static_cast<char>(i * 91 % 251 - 125);
    } else if (i % 2) {  // the upper half of the float32 of an integer
      for (const auto& [to, value] : {std::pair{a, i * 37 % 13 - 6}, {b, i * 91 % 17 - 8}}) {
        const auto number = static_cast<float>(value);
        std::memcpy(to + i - 1, reinterpret_cast<const char*>(&number) + 2, 2);
      }
    }
  }
  run(storage, a, b, c[0], 64);
  expected(storage, a, b, c[1], 64);
  return std::memcmp(c[0], c[1], sizeof(c[0])) == 0;
}
#endif

std::string refusal() {
#if defined(__x86_64__) && defined(__linux__)
  if (!processor_has_tiles() || !isa_available(Isa::avx512_bf16)) return "the processor has none";
  if (!tile_product_kernel.variants[static_cast<int>(Isa::amx)]) {
    return "the compiler that built this knows none";
  }
  if (!system_saves_tiles()) return "the operating system does not save tiles";
  if (!allowed()) return std::string("the operating system refuses: ") + std::strerror(errno);
  for (const Storage storage : {Storage::bf16, Storage::u8}) {
    if (!multiplies_as_expected(storage)) return "a product of tiles has come out wrong";
  }
  return "";
#else
  return "the processor has none";
#endif
}

}  // namespace

const std::string& amx_refusal() {
  static const std::string reason = refusal();
  return reason;
}

}  // namespace agf
