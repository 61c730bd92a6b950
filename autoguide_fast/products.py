"""Products of matrices, convolutions and attention: PyTorch's, as they are fastest.

On a processor that does not multiply a 16-bit type PyTorch does so in loops 20 times slower than
float32's. There data, and what is kept for the backward pass, stay in that type and are widened for
each product.
"""

import torch
import torch.nn.functional as F

from ._extension import MULTIPLIED

# Queries up to which attention with all its scores in memory is faster on a CPU than PyTorch's
# fused one, whose backward pass is slow there for so few of them, above all in 16 bits.
_FEW_QUERIES = {torch.float32: 64, torch.bfloat16: 256}
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def widened(x):
    """Whether products of `x` are computed in float32 though it is of a 16-bit type."""
    # On "meta", where memory is counted ahead of a run, as on a CPU.
    return x.device.type in ("cpu", "meta") and x.dtype not in MULTIPLIED


def linear(x, weight):
    """`x [..., C]` times `weight [K, C]`: `[..., K]`, in their common type."""
    return _Linear.apply(x, weight) if widened(x) else F.linear(x, weight)


def conv2d(x, weight):
    """`x [N, C, H, W]` with `weight [K, C, k, k]`, k odd, zeros around: `[N, K, H, W]`."""
    if widened(x):
        return _Conv2d.apply(x, weight)
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def attention(q, k, v):
    """`softmax(q k^T / sqrt(channels)) v` of `[N, heads, pixels, channels]`, contiguous."""
    if widened(q):
        return _Attention.apply(q, k, v)
    if q.device.type not in ("cpu", "meta") or q.shape[2] > _FEW_QUERIES.get(q.dtype, 0):
        return F.scaled_dot_product_attention(q, k, v)
    shape, (q, k, v) = q.shape, (part.flatten(0, 1) for part in (q, k, v))
    scores = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=shape[-1] ** -0.5)
    return (scores.softmax(dim=-1) @ v).view(shape)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wide, grad_x, grad_weight = grad.float(), None, None
        if ctx.needs_input_grad[0]:
            grad_x = (wide @ weight.float()).to(x.dtype)
        if ctx.needs_input_grad[1]:
            rows = wide.reshape(-1, wide.shape[-1])
            grad_weight = (rows.t() @ x.reshape(-1, x.shape[-1]).float()).to(x.dtype)
        return grad_x, grad_weight


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.conv2d(x.float(), weight.float(), padding=weight.shape[-1] // 2).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        one, padding = [1, 1], [weight.shape[-1] // 2] * 2
        gradients = torch.ops.aten.convolution_backward(
            grad.float(), x.float(), weight.float(), None, one, padding, one, False, [0, 0], 1,
            [*ctx.needs_input_grad, False],
        )  # fmt: skip
        return tuple(None if g is None else g.to(x.dtype) for g in gradients[:2])


class _Attention(torch.autograd.Function):
    """PyTorch's attention on a CPU, which keeps no scores, but for a logarithm per query."""

    @staticmethod
    def forward(ctx, q, k, v):
        y, logsumexp = _FORWARD(q.float(), k.float(), v.float())
        y = y.to(q.dtype)
        ctx.save_for_backward(q, k, v, y, logsumexp)
        return y

    @staticmethod
    def backward(ctx, grad):
        q, k, v, y = (t.float() for t in ctx.saved_tensors[:4])
        gradients = _BACKWARD(grad.float(), q, k, v, y, ctx.saved_tensors[4], 0.0, False)
        return tuple(g.to(grad.dtype) for g in gradients)
