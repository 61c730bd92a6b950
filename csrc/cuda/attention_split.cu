// The kernels of attention_split.cuh, compiled by nvcc.
#include "cuda/attention_split.cuh"

#include "cuda/compile.cuh"

namespace agf::cuda {
static const Compile<AttentionSplit, AttentionSplitBackward> attention_split_kernels;
}
