"""PyTorch's own matrix products, convolutions and attention, called so that they are fast.

On a processor that has no instructions to multiply a 16-bit type, PyTorch multiplies it in loops 20
times slower than float32's. There these functions keep data, and what the backward pass needs, in
the 16-bit type, and convert to float32 for each product.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu import native_types
from .modes import transformed, without_autocast

# Queries up to which attention with all its scores in memory is faster on a CPU than PyTorch's
# fused one, whose backward pass is slow there for so few of them, above all in 16 bits.
_FEW_QUERIES = {torch.float32: 64, torch.bfloat16: 256}
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def widened(x: Tensor) -> bool:
    """Whether products of `x` are computed in float32 though it is of a 16-bit type."""
    # On "meta", where memory is counted ahead of a run, as on a CPU.
    return x.device.type in ("cpu", "meta") and x.dtype not in native_types()


@without_autocast
def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x [..., C]` times `weight [K, C]`: `[..., K]`, in their common type."""
    if not widened(x):
        return F.linear(x, weight)
    return _wide_linear(x, weight) if transformed() else _Linear.apply(x, weight)


@without_autocast
def conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """`x [N, C, H, W]` with `weight [K, C, k, k]`, k odd, zeros around: `[N, K, H, W]`."""
    if not widened(x):
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    return _wide_conv2d(x, weight) if transformed() else _Conv2d.apply(x, weight)


@without_autocast
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(q k^T / sqrt(channels)) v` of `[N, heads, pixels, channels]`, contiguous."""
    if transformed():
        return (_weights(_wide(q), _wide(k)) @ _wide(v)).to(q.dtype)
    if widened(q):
        y = _Attention.apply(q, k, v)
    elif q.device.type in ("cpu", "meta") and q.shape[2] <= _FEW_QUERIES.get(q.dtype, 0):
        return _all_scores(q, k, v)
    else:
        y = F.scaled_dot_product_attention(q, k, v)
    if torch.compiler.is_compiling() or not y.requires_grad:
        return y
    return _Twice.apply(q, k, v, y)


def _all_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with all its scores in memory."""
    shape, (q, k, v) = q.shape, (part.flatten(0, 1) for part in (q, k, v))
    scores = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=shape[-1] ** -0.5)
    return (scores.softmax(dim=-1) @ v).view(shape)


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)


def _wide(x: Tensor) -> Tensor:
    return x.float() if widened(x) else x


def _wide_linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x.float(), weight.float()).to(x.dtype)


def _wide_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x.float(), weight.float(), padding=weight.shape[-1] // 2).to(x.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _wide_linear(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
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
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _wide_conv2d(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        one, padding = [1, 1], [weight.shape[-1] // 2] * 2
        gradients = torch.ops.aten.convolution_backward(
            grad.float(),
            x.float(),
            weight.float(),
            None,
            one,
            padding,
            one,
            False,
            [0, 0],
            1,
            [*ctx.needs_input_grad, False],
        )
        return tuple(None if g is None else g.to(x.dtype) for g in gradients[:2])


class _Attention(torch.autograd.Function):
    """PyTorch's attention on a CPU, which keeps no scores, but for a logarithm per query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y, logsumexp = _FORWARD(q.float(), k.float(), v.float())
        y = y.to(q.dtype)
        ctx.save_for_backward(q, k, v, y, logsumexp)
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:  # `_Twice` gave the gradients
            return None, None, None
        q, k, v, y = (t.float() for t in ctx.saved_tensors[:4])
        gradients = _BACKWARD(grad.float(), q, k, v, y, ctx.saved_tensors[4], 0.0, False)
        return tuple(g.to(grad.dtype) for g in gradients)


class _Twice(torch.autograd.Function):
    """Lets the backward pass of a fused attention be differentiated, which PyTorch's cannot.

    `y` passes, and so does its gradient, unless that is to be differentiated in turn: then `q`, `k`
    and `v` get theirs from here, and `y` none.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return None, None, None, grad
        # With P = softmax(S), S = q k^T / sqrt(channels): dS = P (dP - sum(P dP)).
        dtype, (q, k, v, grad) = grad.dtype, (_wide(t) for t in (*ctx.saved_tensors, grad))
        weights, grad_weights = _weights(q, k), grad @ v.transpose(-1, -2)
        mean = (weights * grad_weights).sum(dim=-1, keepdim=True)
        grad_scores = weights * (grad_weights - mean) * q.shape[-1] ** -0.5
        grad_q, grad_k = grad_scores @ k, grad_scores.transpose(-1, -2) @ q
        grad_v = weights.transpose(-1, -2) @ grad
        return grad_q.to(dtype), grad_k.to(dtype), grad_v.to(dtype), None
