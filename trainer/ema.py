"""Power-function averages of the weights, tracked while training (EDM2 section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autoguide_fast.ema import check_sigma_rel, power_function_beta

from .sharding import copy_of, local, scatter


class PowerFunctionEMA:
    """Averages of a module's parameters with power-function profiles, updated at every step.

    Args:
        net: the module that is trained.
        sigma_rels: width of each average. [EDM2] tracks 0.05 and 0.10, enough to reconstruct
            any other length afterwards.

    `emas` holds one detached copy of the net per width, in eval mode; sharded where the net is.
    """

    def __init__(self, net: torch.nn.Module, sigma_rels: Sequence[float] = (0.05, 0.10)) -> None:
        self.sigma_rels = [float(s) for s in sigma_rels]
        check_sigma_rel("PowerFunctionEMA", self.sigma_rels)
        self.net = net
        self.emas = [copy_of(net) for _ in self.sigma_rels]

    @torch.no_grad()
    def update(self, nimg: int, batch_size: int) -> None:
        """Takes in the weights after the step that ended at `nimg` images (EDM2 eq. 121)."""
        weights = [local(p.detach()) for p in self.net.parameters()]
        for sigma_rel, ema in zip(self.sigma_rels, self.emas, strict=True):
            beta = power_function_beta(sigma_rel, t_next=nimg, t_delta=batch_size)
            torch._foreach_lerp_([local(p) for p in ema.parameters()], weights, 1 - beta)

    def state_dict(self) -> dict:
        """State for a checkpoint: the widths and one state dict for each."""
        return {"sigma_rels": self.sigma_rels, "emas": [e.state_dict() for e in self.emas]}

    def load_state_dict(self, state: dict) -> None:
        """Restores `state_dict()`; the widths must be the same.

        Raises:
            ValueError: the checkpoint tracked other widths.
        """
        if [float(s) for s in state["sigma_rels"]] != self.sigma_rels:
            raise ValueError(
                f"PowerFunctionEMA: sigma_rels must stay {state['sigma_rels']} as in the "
                f"checkpoint, got {self.sigma_rels}; resume with the same EMA lengths"
            )
        for ema, ema_state in zip(self.emas, state["emas"], strict=True):
            ema.load_state_dict(scatter(ema_state, ema))
