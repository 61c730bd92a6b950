"""The guided pair that a net learns to stand for, its guidance weight being an input of the net."""

from __future__ import annotations

import torch

from autoguide_fast import Engine, checkpoints, load, unlabelled
from autoguide_fast.files import sha256
from autoguide_fast.guidance import Denoiser
from autoguide_fast.networks import Precond

from .options import UNLABELLED, TrainOptions


class Distillation:
    """A main net and its guide as the teacher of one net (arXiv 2210.03142, stage one).

    The student sees a weight w and the teacher's noisy images, and learns
    `D_w = D0 + w (D1 - D0)` from them. It begins as the main net.

    Args:
        options: of the run; `teacher` names both nets.
        device: where they are evaluated.

    Raises:
        ValueError: a net that is not there, or is no `Precond`.
    """

    def __init__(self, options: TrainOptions, device: torch.device) -> None:
        main, guide = options.teacher
        self.low, self.high = options.guidance_range
        self.main = _net(main, "the model")
        self.guide: Denoiser = (
            unlabelled(self.main) if guide == UNLABELLED else _net(guide, "the guide")
        )
        self._digests = [_digest(main), guide if guide == UNLABELLED else _digest(guide)]
        self._main: Denoiser = self.main.to(device)
        self._guide: Denoiser = self.guide
        if isinstance(self.guide, Precond):
            self._guide = self.guide.to(device)
        if device.type == "cpu":
            engine = Engine(self._main, self._guide)
            assert engine.guide is not None
            self._main, self._guide = engine.model, engine.guide

    def identity(self) -> list[str]:
        """The same for the same nets, wherever they lie."""
        return self._digests

    def start(self, net: Precond) -> None:
        """Gives the student the main net's weights.

        Raises:
            ValueError: the student's options are others.
        """
        found = net.load_state_dict(self.main.state_dict(), strict=False)
        missing = [name for name in found.missing_keys if "emb_guidance" not in name]
        if missing or found.unexpected_keys:
            name = [*missing, *found.unexpected_keys][0]
            raise ValueError(
                f"distill: the net must have the layers of the model, got a difference in {name}; "
                "leave the options of the network as the model has them"
            )

    def weights(self, uniform: torch.Tensor) -> torch.Tensor:
        """Guidance weights from numbers of [0, 1)."""
        return self.low + (self.high - self.low) * uniform

    @torch.no_grad()
    def __call__(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        class_labels: torch.Tensor | None,
        guidance: torch.Tensor,
    ) -> torch.Tensor:
        """`D_w` for noisy images [n, C, H, W] at levels [n, 1, 1, 1], with weights [n]."""
        level = sigma.flatten()
        main = self._main(x, level, class_labels)
        guide = self._guide(x, level, class_labels)
        return guide + guidance.reshape(-1, 1, 1, 1) * (main - guide)


def _net(name: str, what: str) -> Precond:
    net = load(checkpoints.find(name, f"distill: {what}"))
    if not isinstance(net, Precond):
        raise ValueError(
            f"distill: {what} must be a net for images, got {type(net).__name__} in {name}; name "
            "another file"
        )
    return net


def _digest(name: str) -> str:
    path = checkpoints.find(name, "distill: a net")
    return checkpoints.read_header(path, "distill").get("checksum") or sha256(path)
