"""Weight preparation: forced and traditional normalisation, gain, 1/sqrt(fan-in) and cast."""
import torch

from ._library import backward, fake, op
from .normalize import normalize_reference

_mp_weight = op("mp_weight")
_mp_weight_forced = op("mp_weight_forced")
_mp_weight_backward = op("mp_weight_backward")

_EPS = 1e-4


def _gain_tensor(gain, weight):
    """Return a number as the operator wants it; None stands for 1, which is most weights'."""
    if isinstance(gain, torch.Tensor):
        return gain
    if gain == 1:
        return None
    return torch.full((), float(gain), dtype=torch.float64, device=weight.device)


def mp_weight(weight, gain=1.0, dtype=None):
    """Prepare a weight for its convolution or product, in one pass.

    `normalize(weight) * gain / sqrt(fan_in)` (EDM2 eq. 47 and 66), cast to `dtype`.

    Args:
        weight: `[out, in, ...]`, floating point, any strides.
        gain: a number, or a float32 or float64 tensor of one element (EDM2's learned gains).
        dtype: dtype of the result; None keeps that of `weight`.

    Returns:
        A contiguous tensor of the shape of `weight`.

    Raises:
        RuntimeError: shapes or dtypes do not fit.

    Differentiable (once) in `weight` and `gain`.
    """
    return _mp_weight(weight, _gain_tensor(gain, weight), _EPS, dtype)


def mp_weight_reference(weight, gain=1.0, dtype=None):
    """`mp_weight` in plain PyTorch."""
    w = normalize_reference(weight, eps=_EPS) * (gain / weight[0].numel() ** 0.5)
    return w if dtype is None else w.to(dtype)


def _gradients(grad, weight, gain, eps):
    grad_weight, grad_gain = _mp_weight_backward(grad, weight, gain, eps)
    return grad_weight, None if gain is None else grad_gain


class _AttachGradient(torch.autograd.Function):
    """Gives a weight that was prepared outside autograd the gradient of `mp_weight`."""

    @staticmethod
    def forward(ctx, weight, gain, prepared):
        ctx.save_for_backward(weight, gain)
        return prepared.view_as(prepared)

    @staticmethod
    def backward(ctx, grad):
        return *_gradients(grad, *ctx.saved_tensors, _EPS), None


def mp_weight_forced(weight, gain=1.0, dtype=None):
    """Replace a weight by its normalised self, then prepare it as `mp_weight` does, in one pass.

    The forced normalisation of training (EDM2 eq. 66 and the text after it): without it the
    magnitude of a weight, which has no effect on the output, would grow and slow its learning.

    Args:
        weight: as for `mp_weight`; overwritten by `normalize(weight)`, outside autograd.
        gain, dtype: as for `mp_weight`.

    Returns:
        `mp_weight` of the new weight; its gradient is taken at the new weight.

    Raises and differentiability: as for `mp_weight`.
    """
    gain = _gain_tensor(gain, weight)
    constant = gain if gain is None else gain.detach()
    prepared = _mp_weight_forced(weight.detach(), constant, _EPS, dtype)
    leaves = [t for t in (weight, gain) if t is not None and t.requires_grad]
    if leaves and torch.is_grad_enabled():
        return _AttachGradient.apply(weight, gain, prepared)
    return prepared


def mp_weight_forced_reference(weight, gain=1.0, dtype=None):
    """`mp_weight_forced` in plain PyTorch."""
    with torch.no_grad():
        weight.copy_(normalize_reference(weight, eps=_EPS))
    return mp_weight_reference(weight, gain, dtype)


@fake("mp_weight")
def _(weight, gain, eps, dtype):
    return torch.empty(weight.shape, dtype=dtype or weight.dtype, device=weight.device)


@fake("mp_weight_forced")
def _(weight, gain, eps, dtype):
    return torch.empty(weight.shape, dtype=dtype or weight.dtype, device=weight.device)


@fake("mp_weight_backward")
def _(grad, weight, gain, eps):
    shape, dtype = ((), torch.float64) if gain is None else (gain.shape, gain.dtype)
    return (
        torch.empty(weight.shape, dtype=weight.dtype, device=weight.device),
        torch.empty(shape, dtype=dtype, device=weight.device),
    )


def _save(ctx, inputs, output):
    weight, gain, ctx.eps, _ = inputs
    ctx.save_for_backward(weight, gain)


def _backward(ctx, grad):
    return *_gradients(grad, *ctx.saved_tensors, ctx.eps), None, None


backward("mp_weight", _backward, _save)
