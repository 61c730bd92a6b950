// One evaluation of a U-Net as a list of instructions over an arena, what the engine runs.
//
// Every image has a part of the arena to itself, laid out the same way, so that one plan serves any
// number of images, and images can be spread over threads that never meet. Feature maps are
// channels-last and their channels padded with zeros to a multiple of 16; those that a 3x3
// convolution reads have a border of zeros around them. autoguide_fast/engine/ writes plans.
#pragma once
#include <cstdint>
#include <limits>
#include <variant>
#include <vector>

#include "cpu/kernels.h"

// Small functions of the variants for different instruction sets must not be shared by the linker.
#define AGF_INLINE inline __attribute__((always_inline))

namespace agf {

using std::int64_t;

constexpr int kLanes = 16;  // channels of a panel of weights, and what channel counts are padded to
constexpr int64_t kAlignment = 64;  // bytes: of maps in the arena, of weights in their block

AGF_INLINE constexpr int64_t aligned_bytes(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// How a map's values are stored. u8: value = scale * (stored - zero), with constants of the plan.
enum class Storage : int { f32 = 0, bf16 = 1, u8 = 2 };
constexpr int kStorages = 3;
AGF_INLINE constexpr int64_t storage_bytes(Storage storage) {
  return storage == Storage::f32 ? 4 : storage == Storage::bf16 ? 2 : 1;
}

struct Map {
  int64_t offset = -1;  // bytes from the start of the image's part of the arena; -1: no map
  int64_t height = 0, width = 0, channels = 0, border = 0;
  Storage storage = Storage::f32;
  float scale = 1, zero = 0;

  AGF_INLINE explicit operator bool() const { return offset >= 0; }
  AGF_INLINE int64_t pixel_bytes() const { return channels * storage_bytes(storage); }
  AGF_INLINE int64_t line_bytes() const { return (width + 2 * border) * pixel_bytes(); }
  AGF_INLINE int64_t bytes() const { return (height + 2 * border) * line_bytes(); }
};

// The images and a plane of ones, times c_in, into `out`.
struct Load {
  Map out;
  int64_t image_channels = 0;
};

// The entry of a block: [weight x, skip_weight skip] resampled, normalised and activated.
struct BlockPrologue {
  Map x, skip;         // skip: none unless the block concatenates
  Map main, act, raw;  // what the sum at the block's end needs; mp_silu of it; a copy as stored
  Resample resample = Resample::keep;
  float weight = 1, skip_weight = 0;
  int64_t normalised = 0;  // number of channels of the pixel norm; 0 for none
};

// A convolution, 1x1 or 3x3, and all that happens to its result before anything else reads it.
struct Convolve {
  // The algorithm: the sum of products itself, or Winograd's F(n x n, 3x3) with the value n.
  enum Winograd : int64_t { direct = 0, f2x2 = 2, f4x4 = 4 };

  Map in, sum, out, act;
  int64_t taps = 0;            // 1 or 9
  int64_t in_channels = 0;     // that count; a multiple of 4, at most in.channels
  int64_t weights = -1;        // byte offset of the packed weights
  Winograd winograd = direct;  // f2x2 and f4x4 in bf16, with transformed weights; f4x4 in float32
  int64_t dequantise = -1;     // u8: byte offset of [2, out channels]: scale, sum of weights * zero
  int64_t modulation = -1;     // r = mp_silu(r * modulation), at this channel of all; -1: not
  float sum_weight = 0;        // r = clip(r + sum_weight * sum, limit) where there is `sum`
  float limit = std::numeric_limits<float>::infinity();
};

// Queries, keys and values from the first convolution of an attention, normalised per head.
struct SplitHeads {
  Map qkv;  // channels [3, heads, head_stride]; bf16: products may be, too
  int64_t heads = 0, head_channels = 0, head_stride = 0;
  int64_t q = -1, k = -1, v = -1;  // byte offsets of float32 [heads, pixels, head_stride]; the keys
  int64_t pixels_stride = 0;       // are padded to this number of pixels
  float temperature = 1;           // which divides the scores; 0: each pixel attends to itself

  AGF_INLINE int64_t query_bytes() const {
    return 4 * heads * qkv.height * qkv.width * head_stride;
  }
  AGF_INLINE int64_t key_bytes() const { return 4 * heads * head_stride * pixels_stride; }
  AGF_INLINE int64_t value_bytes() const { return query_bytes(); }
};

// out = softmax(q k^T / (sqrt(head_channels) temperature)) v, or v where the temperature is 0
struct Attend {
  SplitHeads from;
  Map out;
};

// A result, from the first channels of `in` to a contiguous image.
struct Store {
  Map in;
  int64_t image_channels = 0;
  int64_t result = 0;  // which one: plans of several nets have as many
};

using Instruction = std::variant<Load, BlockPrologue, Convolve, SplitHeads, Attend, Store>;

struct Plan {
  std::vector<Instruction> instructions;
  int64_t image_bytes = 0;    // of an image's part of the arena
  int64_t scratch_bytes = 0;  // for each thread
  int64_t weight_bytes = 0, modulations = 0;
  int64_t resolution = 0, image_channels = 0;
  int64_t results = 1;

  // Checks that every map and weight of the instruction lies within the plan, and appends it;
  // throws std::invalid_argument.
  void add(const Instruction& instruction);

  // Of a team's part of the arena: the maps of `chunk` images, then its threads' scratch memory.
  AGF_INLINE int64_t team_bytes(int64_t chunk, int64_t members) const {
    return chunk * image_bytes + members * scratch_bytes;
  }
};

// How much of each instruction each of a team's `threads` has to do for `images`, without doing it:
// by instruction and thread, in units of the instruction's own.
std::vector<std::vector<double>> shares(const Plan& plan, int64_t images, int64_t threads);

// What one thread of one team knows while it runs a plan over its images.
struct ExecutionContext {
  char* arena;  // of the team's first image
  int64_t image_bytes;
  const char* weights;
  const float* modulations;   // of the team's first image
  int64_t modulation_stride;  // floats from image to image; 0 where one row serves all
  int64_t images;
  int thread, threads;  // of the team
  char* scratch;        // this thread's own
  const void* x;        // the team's first image, float32 or float64
  bool x_is_double;
  int64_t x_strides[4];  // in elements
  double c_in;
  float* result;          // of the team's first image
  int64_t result_stride;  // floats from a result to the next

  AGF_INLINE char* pixel(const Map& map, int64_t image, int64_t y, int64_t x) const {
    return arena + image * image_bytes + map.offset + (y + map.border) * map.line_bytes() +
           (x + map.border) * map.pixel_bytes();
  }
};

// A thread's share [begin, end) of `count` items.
struct Share {
  int64_t begin, end;
  AGF_INLINE Share(int64_t count, const ExecutionContext& f)
      : begin(count * f.thread / f.threads), end(count * (f.thread + 1) / f.threads) {}
};

}  // namespace agf
