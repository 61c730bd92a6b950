"""Adam over the weights of a net, and what comes between the gradients and its step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .sharding import as_shard, is_sharded, local, rows

GRADIENT_LIMIT = 1e5  # what an infinite gradient becomes; far above any that training meets


def make_optimizer(
    net: torch.nn.Module,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    capturable: bool = False,
) -> torch.optim.Adam:
    """Adam (EDM2 table 6), fused: one pass over all parameters. The rate is set at each step.

    The fused kernel copies what is not contiguous, to and fro, and takes plain tensors. It is
    therefore given contiguous views: of a channels-last weight with its axes in the order of
    memory, of a sharded one the rows of this process.

    Args:
        net: whose parameters to train.
        betas, eps: of Adam.
        capturable: let a CUDA graph record the step; the rate is then a tensor on the device.
    """
    views = [_view(p) for p in net.parameters()]
    lr = torch.zeros((), dtype=torch.float32, device=views[0].device) if capturable else 0.0
    optimizer = torch.optim.Adam(
        views, lr=lr, betas=betas, eps=eps, fused=True, capturable=capturable
    )
    # It runs unrecorded first, to warm up, which torch would warn of.
    optimizer._warned_capturable_if_run_uncaptured = True
    return optimizer


def _view(p: torch.nn.Parameter) -> torch.Tensor:
    if not is_sharded(p) and p.is_contiguous():
        return p
    view: Any = _in_memory_order(p.detach(), p)  # a tensor with an attribute of ours
    view.owner = p
    return view


def _in_memory_order(t: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """What this process has of `t`, which is shaped and sharded as `owner`, in its axes' order."""
    mine = local(t)
    return mine if local(owner).is_contiguous() else mine.permute(0, 2, 3, 1)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def gradients_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The gradients that are there, those of views taken from the parameters that own them."""
    views = _views(optimizer)
    for view in views:
        owner = getattr(view, "owner", None)
        if owner is not None:
            gradient = owner.grad
            if gradient is not None:
                # As autograd lays it out; in another layout the fused kernel would misread it.
                gradient = _in_memory_order(gradient, owner).contiguous()
            view.grad = gradient
    return [view.grad for view in views if view.grad is not None]


def _views(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def moments(optimizer: torch.optim.Optimizer) -> list[dict]:
    """Adam's state for a checkpoint: `step`, `exp_avg`, `exp_avg_sq` of each parameter, in order.

    The moments are shaped and sharded as the parameters are.
    """
    return [
        {
            k: v if k == "step" else _as_weight(v, getattr(view, "owner", view))
            for k, v in optimizer.state.get(view, {}).items()
        }
        for view in _views(optimizer)
    ]


def _as_weight(moment: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    if is_sharded(owner):
        return as_shard(moment, owner)
    return moment if owner.is_contiguous() else moment.permute(0, 3, 1, 2)


def load_moments(optimizer: torch.optim.Optimizer, state: list[dict]) -> None:
    """Restores what `moments` gave, with whole tensors; each process takes its own rows."""
    optimizer.state.clear()
    for view, stored in zip(_views(optimizer), state, strict=True):
        owner = getattr(view, "owner", view)
        for name, value in stored.items():
            if name == "step":
                new = value.to(view.device, copy=True)
            else:
                new = torch.empty_like(view).copy_(_in_memory_order(rows(value, owner), owner))
            optimizer.state[view][name] = new


def norm_of(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The Euclidean norm of all elements of these tensors together, a tensor [] on their device."""
    return torch.stack(torch._foreach_norm(tensors)).norm()


def repair(gradients: list[torch.Tensor]) -> None:
    """Makes 0 of a NaN and +-1e5 of an infinity, so that one bad batch cannot end a run."""
    for g in gradients:
        torch.nan_to_num(g, nan=0.0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT, out=g)


class LossScale:
    """Keeps float16 gradients in range: the loss is multiplied, the gradients divided.

    Steps whose gradients overflow are left out and halve the scale; 2000 good ones in a row
    double it. With other types the scale is 1 and nothing is ever left out.

    value, good_steps: float32 tensors [] on the device, so that a step need not read them.
    """

    GROWTH_STEPS = 2000

    def __init__(self, precision: str, start: float, device: torch.device | str = "cpu") -> None:
        self.dynamic = precision == "fp16"
        start = start if self.dynamic else 1.0
        self.value = torch.tensor(start, dtype=torch.float32, device=device)
        self.good_steps = torch.zeros((), dtype=torch.float32, device=device)

    def adjust(self, overflow: torch.Tensor) -> None:
        """Takes in whether the gradients of a step overflowed, a tensor [] of 0 or 1."""
        good = (self.good_steps + 1) * (1 - overflow)
        grown = (good >= self.GROWTH_STEPS).to(torch.float32)
        self.value.mul_(1 + grown - 0.5 * overflow).clamp_(min=1.0)
        self.good_steps.copy_(good * (1 - grown))

    def state(self) -> list[float]:
        """Scale and good steps as plain numbers."""
        return [self.value.item(), int(self.good_steps.item())]

    def load(self, state: list[float]) -> None:
        """Restores `state()`."""
        self.value.fill_(state[0])
        self.good_steps.fill_(state[1])


class Update:
    """What a step does with its gradients, once they are there: unscale, check, repair, Adam.

    A gradient element that is not finite counts as 0 (NaN) or +-1e5 (infinite); with a loss scale
    the step is left out instead.

    Args:
        optimizer: Adam, from `make_optimizer`.
        scale: of the loss.
        norm: how the norm of the gradients is computed; of shards, it takes all processes.
        reads: whether a number may be read from the device, which saves the repair of what needs
            none; False to record the update in a CUDA graph.

    norm: float32 [], that of the gradients before any repair; not finite where there was one, or
    where the step was left out.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scale: LossScale,
        norm: Callable[[list[torch.Tensor]], torch.Tensor] = norm_of,
        reads: bool = True,
    ) -> None:
        self.optimizer, self.scale, self._norm, self._reads = optimizer, scale, norm, reads
        self.norm = torch.full_like(scale.value, math.nan)

    def __call__(self) -> None:
        gradients = gradients_of(self.optimizer)
        if self.scale.dynamic:
            torch._foreach_mul_(gradients, 1 / self.scale.value)
        self.norm.copy_(self._norm(gradients))
        if self.scale.dynamic:
            overflow = (~self.norm.isfinite()).to(torch.float32)
            optimizer: Any = self.optimizer  # whose class does not declare what it looks for
            optimizer.found_inf = overflow  # the fused kernels then leave all as it is
            optimizer.step()
            self.scale.adjust(overflow)
            return
        if not self._reads or not math.isfinite(self.norm.item()):
            repair(gradients)
        self.optimizer.step()
