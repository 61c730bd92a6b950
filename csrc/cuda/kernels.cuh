// All kernels, for what compiles any of them: NVRTC, and the simulator of the tests.
#pragma once
#include "cuda/attention_split.cuh"
#include "cuda/combine.cuh"
#include "cuda/guided_step.cuh"
#include "cuda/mp_cat.cuh"
#include "cuda/mp_fourier.cuh"
#include "cuda/mp_silu.cuh"
#include "cuda/mp_sum.cuh"
#include "cuda/mp_weight.cuh"
#include "cuda/normalize.cuh"
#include "cuda/resample.cuh"
