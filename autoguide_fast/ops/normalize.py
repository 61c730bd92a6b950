"""Normalisation to unit magnitude: pixel norm and weight norm."""
import torch

from ._library import backward, dense_empty, fake, op

_normalize = op("normalize")
_normalize_backward = op("normalize_backward")


def normalize(x, dim=None, eps=1e-4):
    """Scale vectors to unit magnitude: `x / (eps + |x| / sqrt(n))` over `n` values.

    EDM2 eq. 30 (pixel norm, `dim=1`) and eq. 66 (weights, `dim=None`).

    Args:
        x: floating-point tensor of two or more dimensions, any strides.
        dim: 1 normalises over the channels of each pixel of `[N, C, ...]`; None over everything
            but dimension 0, one vector for each output of a weight.
        eps: added to the magnitude.

    Returns:
        A tensor of the shape and dtype of `x`; dense as for `mp_silu` with `dim=1`, contiguous
        with `dim=None`.

    Raises:
        RuntimeError: another `dim`, fewer than two dimensions, not floating point.

    Differentiable (once).
    """
    return _normalize(x, dim, eps)


def normalize_reference(x, dim=None, eps=1e-4):
    """`normalize` in plain PyTorch."""
    dims = list(range(1, x.ndim)) if dim is None else [dim]
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    return x / (eps + norm * (norm.numel() / x.numel()) ** 0.5)


def _empty(x, dim):
    if dim is None:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return dense_empty(x)


@fake("normalize")
def _(x, dim, eps):
    return _empty(x, dim)


@fake("normalize_backward")
def _(grad, x, dim, eps):
    return _empty(x, dim)


def _save(ctx, inputs, output):
    x, ctx.dim, ctx.eps = inputs
    ctx.save_for_backward(x)


def _backward(ctx, grad):
    return _normalize_backward(grad, *ctx.saved_tensors, ctx.dim, ctx.eps), None, None


backward("normalize", _backward, _save)
