"""`CpuEngine`: a pair on the CPU, each evaluation a plan of fused instructions."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .. import as_built, cpu, kept_choices
from ..guidance import Cond, Denoiser, Weight, bare, guide_roles
from ..guided_stepper import Nets
from ..sampler import Step, Stepper
from . import choice, race
from .base_engine import BaseEngine, Guides, check_nets, dtype_list, guide_list
from .cpu_nets import CpuNets
from .cpu_stepper import CpuStepper
from .joint_net import joint_net
from .prepared import STORAGE_TYPES, Arena, PreparedNet, device_of
from .profile import Profile, Row


class CpuEngine(BaseEngine):
    """A pair on the CPU: packed weights, and an arena in which plans run (`csrc/engine/`).

    Args:
        model, guide, dtype: As for `autoguide_fast.Engine`.
    """

    model: PreparedNet
    guides: tuple[PreparedNet, ...]

    def __init__(
        self,
        model: Denoiser,
        guide: Guides = None,
        dtype: torch.dtype | str | Sequence[torch.dtype | str] = torch.float32,
    ) -> None:
        guides = guide_list(guide)
        asked = dtype_list(dtype, len(guides))
        for each in asked:
            check_dtype(each)
        check_nets(model, guides)
        self.device = device_of(model)
        self._types = [_chosen(t, net) for t, net in zip(asked, [model, *guides], strict=True)]
        dtypes = [t for t, _ in self._types]
        self.dtype = dtypes[0]
        self._arena = Arena()
        made: list[tuple[Denoiser, PreparedNet]] = []
        for net, own in zip([model, *guides], dtypes, strict=True):
            shared = next((p for n, p in made if bare(n) is bare(net) and p.dtype == own), None)
            made.append((net, PreparedNet(net, own, self._arena, shared)))
        self.model, *others = (prepared for _, prepared in made)
        self.guides = tuple(others)
        # Of guides of the model's own weights, by role.
        self.joint = {
            role: joint
            for role, net, guide in zip(guide_roles(len(guides)), guides, others, strict=True)
            if (joint := joint_net(model, net, self.model, guide)) is not None
        }

    def stepper(
        self,
        guidance: Weight,
        class_labels: Tensor | None,
        steps: Sequence[Step],
        cond: Mapping[str, Cond] | None = None,
    ) -> Stepper:
        """See `BaseEngine.stepper`."""
        guide = self.guides[0] if self.guides else None
        joint = self.joint.get("guide")
        return CpuStepper(self.model, guide, guidance, class_labels, steps, cond, joint)

    def nets(
        self, class_labels: Tensor | None, sigmas: Sequence[float], cond: Mapping[str, Cond] | None
    ) -> Nets:
        """See `BaseEngine.nets`."""
        roles = guide_roles(len(self.guides))
        prepared = {"model": self.model} | dict(zip(roles, self.guides, strict=True))
        return CpuNets(prepared, class_labels, sigmas, cond, self.joint)

    def close(self) -> None:
        """Release the arena; it may run again."""
        with self._arena.lock:
            self._arena.release()

    def peak_memory(self, batch: int, threads: int | None = None) -> int:
        """See `autoguide_fast.Engine.peak_memory`."""
        threads = threads or torch.get_num_threads()
        nets = [self.model, *self.guides, *self.joint.values()]
        weights = {net.lowered.weights.data_ptr(): net.weight_bytes for net in nets}
        arena = max(net.arena_bytes(batch, threads) for net in nets)
        image = 4 * self.model.img_channels * self.model.img_resolution**2
        # What CpuStepper holds: its state, of float32, and two outputs of each net.
        state = (4 + 2 * len(nets)) * batch * image
        return sum(weights.values()) + arena + state

    def info(self) -> str:
        """See `autoguide_fast.Engine.info`."""
        lines = [f"{cpu.processor()}, {cpu.isa()}; choices kept in {kept_choices.folder()}"]
        told: dict[int, str] = {}
        for (role, net), (dtype, why) in zip(self.by_role.items(), self._types, strict=True):
            assert isinstance(net, PreparedNet)
            lines.append(f"{role}: {str(dtype).removeprefix('torch.')} ({why})")
            if id(net.lowered) in told:
                lines.append(f"  the plan of the {told[id(net.lowered)]}")
                continue
            told[id(net.lowered)] = role
            counts = Counter((c, chosen) for _, c, chosen in net.lowered.choices)
            for (convolution, chosen), count in counts.items():
                lines.append(f"  {count} x {convolution}: {chosen.algorithm} ({chosen.why})")
        return "\n".join(lines)

    def profile(self, batch: int = 1, repeats: int = 20) -> Profile:
        """See `autoguide_fast.Engine.profile`; here, instruction by instruction."""
        rows: list[Row] = []
        for role, net in zip(self.by_role, (self.model, *self.guides), strict=True):
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


def check_dtype(dtype: torch.dtype | str) -> None:
    """Raise ValueError where plans do not multiply this type."""
    if dtype != "auto" and (not isinstance(dtype, torch.dtype) or dtype not in STORAGE_TYPES):
        raise ValueError(
            f"Engine: dtype must be torch.float32, torch.bfloat16, torch.int8 or 'auto', got "
            f"{dtype!r}; float32 gives the reference's numbers"
        )


def _chosen(dtype: torch.dtype | str, net: Denoiser) -> tuple[torch.dtype, str]:
    """A type that plans multiply, and why it is that one.

    "auto" is the fastest of those as good as float32.
    """
    if dtype == "auto":
        return choice.of_type(as_built.contents(bare(net))[0], lambda types: _measured(net, types))
    assert isinstance(dtype, torch.dtype)
    return dtype, "as given"


def _measured(net: Denoiser, types: Sequence[torch.dtype]) -> dict[torch.dtype, list[float]]:
    """Seconds of an evaluation in each of these types, by classes of batches."""

    def evaluation(prepared: PreparedNet) -> Callable[[int], None]:
        size = prepared.img_resolution
        rows = prepared.modulations(torch.ones(1, dtype=torch.float32, device="cpu"), None)[0]

        def evaluate(images: int) -> None:
            x = torch.ones(
                images, prepared.img_channels, size, size, dtype=torch.float32, device="cpu"
            )
            prepared.evaluate(x, 1.0, rows, torch.empty_like(x), threads=1)

        return evaluate

    return race.types({t: evaluation(PreparedNet(net, t, Arena())) for t in types})
