"""The modulations of all blocks, for all noise levels of a run, in one matrix product.

In float32 by PyTorch, also where the plan multiplies narrower types, on AMX's tiles for instance:
of a guided sampling in 32 steps it takes 1.4 % with the bundled pair at batch 1, and at most 0.35 %
with all else (`python benchmarks/embedding.py`, one thread of an AMD EPYC with AVX2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, preconditioning
from ..networks import Precond
from ..unet import Block
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
        self.guidance: Tensor | None = None
        if unet.emb_guidance is not None:
            fourier, gain = unet.emb_guidance_fourier, unet.emb_guidance_gain.detach()
            self.guidance_freqs = fourier.freqs.clone()
            self.guidance_phases = fourier.phases.clone()
            self.guidance = ops.mp_weight(unet.emb_guidance.weight.detach(), gain)
        rows = []
        for block in (*unet.enc.values(), *unet.dec.values()):
            if isinstance(block, Block):
                weight = ops.mp_weight(block.emb_linear.weight.detach(), block.emb_gain.detach())
                rows.append(F.pad(weight, (0, 0, 0, -len(weight) % pack.LANES)))
        self.blocks = torch.cat(rows)

    @property
    def bytes(self) -> int:
        """Memory of its weights."""
        weights = self.noise, self.label, self.guidance, self.blocks
        return sum(w.nbytes for w in weights if w is not None)

    def modulations(
        self, levels: Tensor, class_labels: Tensor | None, guidance: Tensor | None = None
    ) -> Tensor:
        """Numbers near 1 by which the embedding scales channels (EDM2 fig. 21).

        Args:
            levels: noise levels `[levels]`.
            class_labels: `[rows, label_dim]`; None stands for all zeros.
            guidance: guidance weights `[rows or 1]` of a net that takes them; None is 1.

        Returns:
            float32 `[levels, rows, modulations]`, in the order of the plan; one row where neither
            labels nor weights have more.
        """
        return self._blocks(
            self._noise(levels)[:, None], self._labels(class_labels), self._weights(guidance)
        )

    def of_images(
        self,
        sigma: Tensor,
        class_labels: Tensor | None,
        noise: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Like `modulations`, for levels, labels, weights `[1 or N]` each: `[1 or N, :]`.

        `noise`, `[N, emb_channels]`, is added to the embedding of the levels.
        """
        emb = self._noise(sigma)
        if noise is not None:
            emb = emb + noise
        return self._blocks(emb, self._labels(class_labels), self._weights(guidance))

    def _noise(self, levels: Tensor) -> Tensor:
        c_noise = preconditioning.c_noise(levels.to(torch.float32))
        return F.linear(ops.mp_fourier(c_noise, self.freqs, self.phases), self.noise)

    def _labels(self, class_labels: Tensor | None) -> Tensor | None:
        if self.label is None:
            return None
        if class_labels is None:
            class_labels = self.label.new_zeros(1, self.label_dim)
        return F.linear(class_labels.to(torch.float32), self.label)

    def _weights(self, guidance: Tensor | None) -> Tensor | None:
        if self.guidance is None:
            return None
        if guidance is None:
            guidance = self.guidance.new_ones(1)
        c_guidance = preconditioning.c_guidance(guidance.to(torch.float32))
        features = ops.mp_fourier(c_guidance, self.guidance_freqs, self.guidance_phases)
        return F.linear(features, self.guidance)

    def _blocks(self, emb: Tensor, labels: Tensor | None, guidance: Tensor | None) -> Tensor:
        """The modulations of the sum of all, whose shapes broadcast."""
        if labels is not None:
            emb, labels = torch.broadcast_tensors(emb, labels)
            emb = ops.mp_sum(emb, labels, t=self.label_balance)
        if guidance is not None:
            emb = emb + guidance
        return F.linear(ops.mp_silu(emb.contiguous()), self.blocks) + 1
