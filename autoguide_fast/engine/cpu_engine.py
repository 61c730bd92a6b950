"""`CpuEngine`: a pair on the CPU, each evaluation a plan of fused instructions."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .. import cpu
from ..guidance import Cond, Denoiser, Weight, bare
from ..sampler import Step, Stepper
from .base_engine import BaseEngine, check_pair
from .cpu_stepper import CpuStepper
from .prepared import STORAGE_TYPES, Arena, PreparedNet, device_of
from .profile import Profile, Row


class CpuEngine(BaseEngine):
    """A pair on the CPU: packed weights, and an arena in which plans run (`csrc/engine/`).

    Args:
        model, guide, dtype: As for `autoguide_fast.Engine`.
    """

    model: PreparedNet
    guide: PreparedNet | None

    def __init__(
        self,
        model: Denoiser,
        guide: Denoiser | None = None,
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        if dtype == "auto":
            dtype = torch.bfloat16 if cpu.isa() == "avx512_bf16" else torch.float32
        if not isinstance(dtype, torch.dtype) or dtype not in STORAGE_TYPES:
            raise ValueError(
                f"Engine: dtype must be torch.float32, torch.bfloat16, torch.int8 or 'auto', got "
                f"{dtype!r}; float32 gives the reference's numbers"
            )
        check_pair(model, guide)
        self.device = device_of(model)
        self.dtype = dtype
        self._arena = Arena()
        self.model = PreparedNet(model, dtype, self._arena)
        self.guide = None
        if guide is not None:
            self.guide = PreparedNet(
                guide, dtype, self._arena, shared=self.model if bare(guide) is bare(model) else None
            )

    def stepper(
        self,
        guidance: Weight,
        class_labels: Tensor | None,
        steps: Sequence[Step],
        cond: Mapping[str, Cond] | None = None,
    ) -> Stepper:
        """See `BaseEngine.stepper`."""
        return CpuStepper(self.model, self.guide, guidance, class_labels, steps)

    def close(self) -> None:
        """Release the arena; it may run again."""
        with self._arena.lock:
            self._arena.release()

    def peak_memory(self, batch: int, threads: int | None = None) -> int:
        """See `autoguide_fast.Engine.peak_memory`."""
        threads = threads or torch.get_num_threads()
        nets = [net for net in (self.model, self.guide) if net is not None]
        weights = {id(net.lowered): net.weight_bytes for net in nets}
        arena = max(net.arena_bytes(batch, threads) for net in nets)
        image = 4 * self.model.img_channels * self.model.img_resolution**2
        # What CpuStepper holds: its state, of float32, and two outputs of each net.
        state = (4 + 2 * len(nets)) * batch * image
        return sum(weights.values()) + arena + state

    def profile(self, batch: int = 1, repeats: int = 20) -> Profile:
        """See `autoguide_fast.Engine.profile`; here, instruction by instruction."""
        rows: list[Row] = []
        for role, net in (("model", self.model), ("guide", self.guide)):
            if net is None:
                continue
            shape = batch, net.img_channels, net.img_resolution, net.img_resolution
            x = torch.randn(
                shape,
                generator=torch.Generator("cpu").manual_seed(0),
                dtype=torch.float32,
                device="cpu",
            )
            result = torch.empty_like(x)
            modulations = net.modulations(torch.ones_like(x[:1, 0, 0, 0]), None)[0]
            times = torch.zeros(len(net.lowered.plan), dtype=torch.float64, device="cpu")
            for i in range(2 + repeats):
                if i == 2:
                    times.zero_()
                net.evaluate(x, 1.0, modulations, result, times)
            seconds = (times / repeats).tolist()
            flops = [batch * flop for flop in net.lowered.flops]
            rows += [(role, *row) for row in zip(net.lowered.names, seconds, flops, strict=True)]
        return Profile(rows, batch, f"{torch.get_num_threads()} threads")
