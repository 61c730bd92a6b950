// Where one run of values of a resampled image comes from, for channels-last ("rows") and
// contiguous ("planes") images, so that resampling costs no pass over memory of its own.
#pragma once
#include "cpu/chunks.h"
#include "cpu/kernels.h"
#include "resample.h"

namespace agf::AGF_ISA {

// EDM2's filter [1, 1]: down is the mean of 2x2 pixels, up repeats each pixel 2x2.
// Height and width (H, W) are those of the resampled image.
struct SourceShape {
  int64_t H, W;
  SourceShape(Resample mode, int64_t h, int64_t w)
      : H(mode == Resample::down ? 2 * h
          : mode == Resample::up ? h / 2
                                 : h),
        W(mode == Resample::down ? 2 * w
          : mode == Resample::up ? w / 2
                                 : w) {}
};

// Runs of channels of one pixel (n, h, w) of the resampled image.
template <class T>
class PixelRows {
 public:
  using A = Compute<T>;
  PixelRows(Resample mode, const void* x, int64_t C, int64_t H, int64_t W)
      : mode_(mode),
        C_(C),
        H_(H),
        W_(W),
        source_(mode, H, W),
        in_{In<T>(x), In<T>(x), In<T>(x), In<T>(x)} {}

  void seek(int64_t pixel) {
    if (mode_ == Resample::keep) {
      offset_ = pixel * C_;
      return;
    }
    const int64_t w = pixel % W_, h = pixel / W_ % H_, n = pixel / W_ / H_;
    const bool down = mode_ == Resample::down;
    const int64_t y = down ? 2 * h : h / 2, x = down ? 2 * w : w / 2;
    offset_ = ((n * source_.H + y) * source_.W + x) * C_;
  }

  const A* at(int64_t c, int n) {
    const A* first = in_[0].at(offset_ + c, n);
    if (mode_ != Resample::down) return first;
    const A* right = in_[1].at(offset_ + C_ + c, n);
    const A* below = in_[2].at(offset_ + source_.W * C_ + c, n);
    const A* across = in_[3].at(offset_ + source_.W * C_ + C_ + c, n);
    AGF_VECTORISE
    for (int j = 0; j < n; ++j) mean_[j] = mean_of_four(first[j], right[j], below[j], across[j]);
    return mean_;
  }

 private:
  Resample mode_;
  int64_t C_, H_, W_;
  SourceShape source_;
  int64_t offset_ = 0;
  In<T> in_[4];
  alignas(64) A mean_[kChunk];
};

// Runs of at most kPixelBlock pixels (h, w..w+n) of plane `plane` of the resampled image.
template <class T>
class PixelPlanes {
 public:
  using A = Compute<T>;
  PixelPlanes(Resample mode, const void* x, int64_t H, int64_t W)
      : mode_(mode), H_(H), W_(W), source_(mode, H, W), in_{In<T>(x), In<T>(x)} {}

  const A* at(int64_t plane, int64_t h, int64_t w, int n) {
    if (mode_ == Resample::keep) return in_[0].at((plane * H_ + h) * W_ + w, n);
    if (mode_ == Resample::down) {
      const int64_t start = (plane * source_.H + 2 * h) * source_.W + 2 * w;
      const A* top = in_[0].at(start, 2 * n);
      const A* bottom = in_[1].at(start + source_.W, 2 * n);
      for (int j = 0; j < n; ++j) {
        run_[j] = mean_of_four(top[2 * j], top[2 * j + 1], bottom[2 * j], bottom[2 * j + 1]);
      }
      return run_;
    }
    const int64_t start = (plane * source_.H + h / 2) * source_.W + w / 2;
    const A* line = in_[0].at(start, static_cast<int>((w + n - 1) / 2 - w / 2 + 1));
    for (int j = 0; j < n; ++j) run_[j] = line[(w + j) / 2 - w / 2];
    return run_;
  }

 private:
  Resample mode_;
  int64_t H_, W_;
  SourceShape source_;
  In<T> in_[2];
  alignas(64) A run_[kPixelBlock];
};

}  // namespace agf::AGF_ISA
