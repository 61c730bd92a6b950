// CUDA kernels of the guided Heun step: preconditioning of both nets, guidance and half a step in
// one pass, where the textbook makes about twenty. Noise levels and weight are read from the
// device, so that a captured graph serves any schedule.
#pragma once
#include "cuda/primitives.cuh"
#include "guided_step.h"

namespace agf::cuda {

// Once per block: it takes square roots and divisions in double, which are slow on most GPUs.
template <class A>
AGF_DEVICE GuidedScalars<A> read_levels(const DeviceLevels& l, bool second) {
  AGF_SHARED(GuidedScalars<A>, shared, 1);
  if (threadIdx.x == 0) {
    const double from = *l.sigma, to = *l.sigma_next;
    shared[0] = GuidedScalars<A>(second ? to : from, to - from, *l.guidance, l.sigma_data, l.raw);
  }
  __syncthreads();
  return shared[0];
}

// Elements of a thread: 16 bytes of the narrower type.
template <class A, class T>
constexpr int kStepVector = kVector<A> > kVector<T> ? kVector<A> : kVector<T>;

template <class A, class T>
AGF_DEVICE void GuidedHeunFirst::run() const {
  const GuidedScalars<A> s = read_levels<A>(levels, false);
  const A* x_in = static_cast<const A*>(x);
  const T* raw_in = static_cast<const T*>(raw);
  const T* guide_in = static_cast<const T*>(guide_raw ? guide_raw : raw);
  A *next = static_cast<A*>(x_next), *slopes = static_cast<A*>(slope);
  const bool vectors = aligned(x, raw, guide_raw, x_next, slope);
  for_elements<kStepVector<A, T>>(count, vectors, [&](auto width, int64_t i) {
    AGF_WIDTH(width);
    A a[N], d[N];
    Compute<T> r1[N], r0[N];
    load(x_in + i, a);
    load(raw_in + i, r1);
    load(guide_in + i, r0);
    for (int j = 0; j < N; ++j) {
      d[j] = agf::AGF_ISA::slope(a[j], guided_denoised(a[j], A(r1[j]), A(r0[j]), s), s);
      a[j] = euler_step(a[j], d[j], s);
    }
    store(a, next + i);
    store(d, slopes + i);
  });
}

template <class A, class T>
AGF_DEVICE void GuidedHeunSecond::run() const {
  const GuidedScalars<A> s = read_levels<A>(levels, true);
  const A *x_in = static_cast<const A*>(x), *next_in = static_cast<const A*>(x_next);
  const A* slopes = static_cast<const A*>(slope);
  const T* raw_in = static_cast<const T*>(raw);
  const T* guide_in = static_cast<const T*>(guide_raw ? guide_raw : raw);
  A* out = static_cast<A*>(x_new);
  const bool vectors = aligned(x, x_next, slope, raw, guide_raw, x_new);
  for_elements<kStepVector<A, T>>(count, vectors, [&](auto width, int64_t i) {
    AGF_WIDTH(width);
    A a[N], b[N], d[N];
    Compute<T> r1[N], r0[N];
    load(x_in + i, a);
    load(next_in + i, b);
    load(slopes + i, d);
    load(raw_in + i, r1);
    load(guide_in + i, r0);
    for (int j = 0; j < N; ++j) {
      const A next = agf::AGF_ISA::slope(b[j], guided_denoised(b[j], A(r1[j]), A(r0[j]), s), s);
      a[j] = trapezoidal_step(a[j], d[j], next, s);
    }
    store(a, out + i);
  });
}

}  // namespace agf::cuda
