// The plans that are alive, and the checks that keep an instruction inside its arena.
#include "engine/registry.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <unordered_map>

#include "cpu/engine_kernels.h"

namespace agf {
namespace {

std::mutex mutex;
std::unordered_map<int64_t, std::shared_ptr<const Plan>>& plans() {
  static auto* all = new std::unordered_map<int64_t, std::shared_ptr<const Plan>>;
  return *all;
}

void require(bool ok, const char* rule) {
  if (!ok) throw std::invalid_argument(std::string("Plan: ") + rule);
}

struct Checker {
  const Plan& plan;

  void place(int64_t offset, int64_t bytes) const {
    require(offset >= 0 && bytes >= 0 && offset % 64 == 0 && offset + bytes <= plan.image_bytes,
            "a map must lie within the image's part of the arena, on a multiple of 64 bytes");
  }
  void map(const Map& m, bool floats = false) const {
    require(m.channels > 0 && m.channels % kLanes == 0 && m.height > 0 && m.width > 0 &&
                (m.border == 0 || m.border == 1) && (!floats || m.storage == Storage::f32),
            "a map must have pixels, a multiple of 16 channels, a border of 0 or 1, and a storage "
            "type that "
            "the instruction can read");
    place(m.offset, m.bytes());
  }
  void maybe(const Map& m, bool floats = false) const {
    if (m) map(m, floats);
  }
  static bool same_pixels(const Map& a, const Map& b) {
    return !a || !b || (a.height == b.height && a.width == b.width);
  }
  static bool same_channels(const Map& a, const Map& b) {
    return !a || !b || a.channels == b.channels;
  }
  void weights(int64_t offset, int64_t bytes) const {
    require(offset >= 0 && offset % 64 == 0 && offset + bytes <= plan.weight_bytes,
            "weights must lie within the packed weights, on a multiple of 64 bytes");
  }

  void operator()(const Load& l) const {
    map(l.out, true);
    require(
        l.image_channels < l.out.channels && l.image_channels == plan.image_channels &&
            l.out.height == plan.resolution && l.out.width == plan.resolution,
        "the first map must be of the image's size and have room for its channels and the ones");
  }
  void operator()(const BlockPrologue& e) const {
    map(e.x, true);
    maybe(e.skip, true);
    require(e.main || e.act || e.raw, "an entry must have a result");
    const int64_t channels = e.x.channels + (e.skip ? e.skip.channels : 0);
    for (const Map* m : {&e.main, &e.act, &e.raw}) {
      if (!*m) continue;
      map(*m);
      const auto fits = [&](int64_t from, int64_t to) {
        return e.resample == -1 ? from == 2 * to : e.resample == 1 ? 2 * from == to : from == to;
      };
      require(m->channels == channels && fits(e.x.height, m->height) && fits(e.x.width, m->width) &&
                  same_pixels(e.skip, *m),
              "an entry's results must have the shape of its resampled input");
    }
    require(e.normalised >= 0 && e.normalised <= channels, "an entry normalises over its channels");
  }
  void operator()(const Convolve& c) const {
    map(c.in);
    maybe(c.sum, true);
    maybe(c.out);
    maybe(c.act);
    require(c.out || c.act, "a convolution must have a result");
    const Map& result = c.out ? c.out : c.act;
    require(same_pixels(c.in, result) && same_pixels(c.sum, result) && same_pixels(c.act, result) &&
                same_channels(c.sum, result) && same_channels(c.act, result),
            "maps of a convolution must be of one size");
    require((c.taps == 1 || (c.taps == 9 && c.in.border == 1)) && c.in_channels > 0 &&
                c.in_channels % 4 == 0 && c.in_channels <= c.in.channels,
            "a convolution must have 1 tap, or 9 and a border");
    require((c.in.storage == Storage::u8) == (c.dequantise >= 0),
            "maps of u8 need scales, and only they");
    const bool narrow = c.in.storage == Storage::bf16;
    const int64_t tile = c.winograd, points = (tile + 2) * (tile + 2);
    require(tile == 0 || ((tile == 4 || (tile == 2 && narrow)) && c.taps == 9 &&
                          c.in.storage != Storage::u8 && c.in.height % tile == 0 &&
                          c.in.width % tile == 0 && c.in_channels == c.in.channels),
            "Winograd needs 9 taps, float32 or bf16, and sizes divisible by 4 or, in bf16, by 2");
    weights(c.weights, (tile && narrow ? points : c.taps) * c.in_channels * result.channels *
                           storage_bytes(c.in.storage));
    if (c.dequantise >= 0) weights(c.dequantise, 2 * 4 * result.channels);
    require(c.modulation < 0 || c.modulation + result.channels <= plan.modulations,
            "a modulation must be one of the plan's");
  }
  void operator()(const SplitHeads& s) const {
    map(s.qkv);
    const int64_t pixels = s.qkv.height * s.qkv.width;
    require(s.qkv.storage != Storage::u8 && s.heads > 0 && s.head_stride % kLanes == 0 &&
                s.head_channels <= s.head_stride && 3 * s.heads * s.head_stride == s.qkv.channels &&
                s.pixels_stride >= pixels && s.pixels_stride % kLanes == 0,
            "an attention's heads must share the channels of its map");
    place(s.q, 4 * s.heads * pixels * s.head_stride);
    place(s.v, 4 * s.heads * pixels * s.head_stride);
    place(s.k, 4 * s.heads * s.head_stride * s.pixels_stride);
  }
  void operator()(const Attend& a) const {
    (*this)(a.from);
    map(a.out);
    require(same_pixels(a.out, a.from.qkv) && a.out.channels == a.from.heads * a.from.head_stride,
            "an attention's result must have one pixel for each of its input");
  }
  void operator()(const Store& s) const {
    map(s.in, true);
    require(s.image_channels <= s.in.channels && s.image_channels == plan.image_channels &&
                s.in.height == plan.resolution && s.in.width == plan.resolution,
            "the result must be of the image's size");
  }
};

}  // namespace

int64_t register_plan(std::shared_ptr<const Plan> plan) {
  static int64_t next = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  plans()[++next] = std::move(plan);
  return next;
}

std::shared_ptr<const Plan> find_plan(int64_t number) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = plans().find(number);
  return found == plans().end() ? nullptr : found->second;
}

void forget_plan(int64_t number) {
  const std::lock_guard<std::mutex> lock(mutex);
  plans().erase(number);
}

void append(Plan& plan, const Instruction& instruction) {
  std::visit(Checker{plan}, instruction);
  const int64_t scratch = std::visit([](const auto& i) { return scratch_bytes(i); }, instruction);
  plan.scratch_bytes = std::max(plan.scratch_bytes, (scratch + 63) / 64 * 64);
  plan.instructions.push_back(instruction);
}

}  // namespace agf
