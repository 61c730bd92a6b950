// What keeps an instruction inside its arena and its weights.
#include "engine/check.h"

#include <stdexcept>
#include <string>

namespace agf {
namespace {

void require(bool ok, const char* rule) {
  if (!ok) throw std::invalid_argument(std::string("Plan: ") + rule);
}

// Enums come from Python, where one can be made of any number.
bool known(Storage s) { return s == Storage::f32 || s == Storage::bf16 || s == Storage::u8; }
bool known(Resample r) { return r == Resample::down || r == Resample::keep || r == Resample::up; }

struct Checker {
  const Plan& plan;

  void place(int64_t offset, int64_t bytes) const {
    require(
        offset >= 0 && bytes >= 0 && offset % kAlignment == 0 && offset + bytes <= plan.image_bytes,
        "a map must lie within the image's part of the arena, on a multiple of 64 bytes");
  }
  void map(const Map& m, bool floats = false) const {
    require(m.channels > 0 && m.channels % kLanes == 0 && m.height > 0 && m.width > 0 &&
                (m.border == 0 || m.border == 1) && known(m.storage) &&
                (!floats || m.storage == Storage::f32),
            "a map must have pixels, a multiple of 16 channels, a border of 0 or 1, and a storage "
            "type that the instruction can read");
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
    require(offset >= 0 && offset % kAlignment == 0 && offset + bytes <= plan.weight_bytes,
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
    require(known(e.resample), "a block is resampled down, up or not");
    require(e.main || e.act || e.raw, "a block's prologue must have a result");
    const int64_t channels = e.x.channels + (e.skip ? e.skip.channels : 0);
    for (const Map* m : {&e.main, &e.act, &e.raw}) {
      if (!*m) continue;
      map(*m);
      const auto fits = [&](int64_t from, int64_t to) {
        return e.resample == Resample::down ? from == 2 * to
               : e.resample == Resample::up ? 2 * from == to
                                            : from == to;
      };
      require(m->channels == channels && fits(e.x.height, m->height) && fits(e.x.width, m->width) &&
                  same_pixels(e.skip, *m),
              "a block prologue's results must have the shape of its resampled input");
    }
    require(e.normalised >= 0 && e.normalised <= channels,
            "a block prologue normalises over its channels");
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
    require(c.winograd == Convolve::direct ||
                ((c.winograd == Convolve::f4x4 || (c.winograd == Convolve::f2x2 && narrow)) &&
                 c.taps == 9 && c.in.storage != Storage::u8 && c.in.height % tile == 0 &&
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
    // Scores of more than sqrt(head_channels) could overflow: no maximum is subtracted from them.
    require(s.temperature == 0 || s.temperature >= 1, "a temperature must be 0, or 1 or more");
    place(s.q, s.query_bytes());
    place(s.k, s.key_bytes());
    place(s.v, s.value_bytes());
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
    require(s.result >= 0 && s.result < 64, "a result must be one of a few");
  }
};

}  // namespace

void check_instruction(const Plan& plan, const Instruction& instruction) {
  std::visit(Checker{plan}, instruction);
}

}  // namespace agf
