"""The modulations of all blocks, for all noise levels of a run, in one matrix product."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, preconditioning
from ..networks import Block, Precond
from . import pack


class Embedding:
    """The embedding network of a `Precond` with prepared weights; a snapshot."""

    def __init__(self, net: Precond) -> None:
        unet = net.unet
        self.label_dim = net.label_dim
        self.label_balance = unet.label_balance
        self.freqs, self.phases = unet.emb_fourier.freqs.clone(), unet.emb_fourier.phases.clone()
        self.noise = ops.mp_weight(unet.emb_noise.weight.detach(), 1.0)
        self.label: Tensor | None = None
        if unet.emb_label is not None:
            # A one-hot row times sqrt(label_dim) has unit magnitude.
            self.label = ops.mp_weight(unet.emb_label.weight.detach(), net.label_dim**0.5)
        rows = []
        for block in (*unet.enc.values(), *unet.dec.values()):
            if isinstance(block, Block):
                weight = ops.mp_weight(block.emb_linear.weight.detach(), block.emb_gain.detach())
                rows.append(F.pad(weight, (0, 0, 0, -len(weight) % pack.LANES)))
        self.blocks = torch.cat(rows)

    @property
    def bytes(self) -> int:
        """Memory of its weights."""
        return sum(w.nbytes for w in (self.noise, self.label, self.blocks) if w is not None)

    def modulations(self, levels: Tensor, class_labels: Tensor | None) -> Tensor:
        """Numbers near 1 by which the embedding scales channels (EDM2 fig. 21).

        Args:
            levels: noise levels `[levels]`.
            class_labels: `[rows, label_dim]`; None stands for all zeros.

        Returns:
            float32 `[levels, rows, modulations]`, in the order of the plan; one row where the net
            has no labels or got none.
        """
        return self._blocks(self._noise(levels)[:, None], self._labels(class_labels))

    def of_images(
        self, sigma: Tensor, class_labels: Tensor | None, noise: Tensor | None = None
    ) -> Tensor:
        """Like `modulations`, for noise levels `[1 or N]` and labels `[1 or N]`: `[1 or N, :]`.

        `noise`, `[N, emb_channels]`, is added to the embedding of the levels.
        """
        emb = self._noise(sigma)
        if noise is not None:
            emb = emb + noise
        return self._blocks(emb, self._labels(class_labels))

    def _noise(self, levels: Tensor) -> Tensor:
        c_noise = preconditioning.c_noise(levels.to(torch.float32))
        return F.linear(ops.mp_fourier(c_noise, self.freqs, self.phases), self.noise)

    def _labels(self, class_labels: Tensor | None) -> Tensor | None:
        if self.label is None:
            return None
        if class_labels is None:
            class_labels = self.label.new_zeros(1, self.label_dim)
        return F.linear(class_labels.to(torch.float32), self.label)

    def _blocks(self, emb: Tensor, labels: Tensor | None) -> Tensor:
        """The modulations of the sum of both, whose shapes broadcast."""
        if labels is not None:
            emb, labels = torch.broadcast_tensors(emb, labels)
            emb = ops.mp_sum(emb, labels, t=self.label_balance)
        return F.linear(ops.mp_silu(emb.contiguous()), self.blocks) + 1
