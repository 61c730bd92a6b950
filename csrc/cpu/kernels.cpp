// The table behind kernels.h: zero until the objects of each variant register themselves.
#include "cpu/kernels.h"

#include "cpu/engine_kernels.h"

namespace agf {

// Zero-initialised before any registration runs, whatever the order of the objects.
decltype(mp_silu_kernel) mp_silu_kernel;
decltype(mp_silu_backward_kernel) mp_silu_backward_kernel;
decltype(modulate_mp_silu_rows_kernel) modulate_mp_silu_rows_kernel, modulate_mp_silu_planes_kernel;
decltype(modulate_mp_silu_backward_rows_kernel) modulate_mp_silu_backward_rows_kernel,
    modulate_mp_silu_backward_planes_kernel;
decltype(mp_sum_kernel) mp_sum_kernel;
decltype(mp_sum_backward_kernel) mp_sum_backward_kernel;
decltype(mp_cat_kernel) mp_cat_kernel;
decltype(mp_cat_backward_kernel) mp_cat_backward_kernel;
decltype(mp_fourier_kernel) mp_fourier_kernel;
decltype(resample_rows_kernel) resample_rows_kernel, resample_planes_kernel;
decltype(normalize_rows_kernel) normalize_rows_kernel, normalize_planes_kernel;
decltype(normalize_backward_rows_kernel) normalize_backward_rows_kernel,
    normalize_backward_planes_kernel;
decltype(mp_weight_kernel) mp_weight_kernel;
decltype(mp_weight_backward_kernel) mp_weight_backward_kernel;
decltype(attention_split_kernel) attention_split_kernel;
decltype(attention_split_backward_kernel) attention_split_backward_kernel;
decltype(guided_heun_first_kernel) guided_heun_first_kernel;
decltype(guided_heun_second_kernel) guided_heun_second_kernel;
decltype(combine_kernel) combine_kernel;
decltype(inner_products_kernel) inner_products_kernel;
decltype(conv3x3_weights_kernel) conv3x3_weights_kernel;
decltype(conv3x3_products_kernel) conv3x3_products_kernel;
decltype(conv3x3_gradient_kernel) conv3x3_gradient_kernel;
decltype(conv3x3_gradient_weights_kernel) conv3x3_gradient_weights_kernel;
decltype(load_kernel) load_kernel;
decltype(block_prologue_kernel) block_prologue_kernel;
decltype(convolve_kernel) convolve_kernel;
decltype(winograd_kernel) winograd_kernel;
decltype(winograd_bf16_kernel) winograd_bf16_kernel;
decltype(split_heads_kernel) split_heads_kernel;
decltype(attend_kernel) attend_kernel;
decltype(store_kernel) store_kernel;
decltype(tile_product_kernel) tile_product_kernel;
decltype(amount_kernel) amount_kernel;

}  // namespace agf
