// The shape that resampling by two gives, checked.
#pragma once
#include "tensor.h"

namespace agf {

struct ResampleShape {
  Resample mode;
  int64_t N, C, H, W;  // of the result

  ResampleShape(const char* function, const Tensor& x, int64_t mode_value)
      : mode(static_cast<Resample>(mode_value)) {
    check(mode_value >= -1 && mode_value <= 1, function,
          ": mode must be -1 (down), 0 (keep) or 1 (up), got ", mode_value, "; use these");
    check_image(function, "x", x);
    N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
    if (mode == Resample::up) H *= 2, W *= 2;
    if (mode == Resample::down) {
      check(H % 2 == 0 && W % 2 == 0, function,
            ": x must have an even height and width to be halved, got ", shape_of(x), "; pad it");
      H /= 2, W /= 2;
    }
  }

  std::vector<int64_t> sizes() const { return {N, C, H, W}; }
};

}  // namespace agf
