"""`GpuEngine`: a pair on a CUDA device, samplings replayed as CUDA graphs."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..guidance import Cond, Denoiser, Weight, bare, guide_roles
from ..guided_stepper import Nets
from ..sampler import Step, Stepper, plan_steps
from ..unet import Block, Midway
from .baked import BakedConv, BakedNet
from .base_engine import BaseEngine, Guides, check_nets, dtype_list, guide_list
from .gpu_nets import GpuNets
from .gpu_stepper import GpuStepper
from .graphs import CudaGraphs
from .prepared import device_of, no_autocast
from .profile import Label, Profile, Row
from .recordings import RunBoth
from .shared_layers import share_layers

Recording = TypeVar("Recording")

DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn

# Recordings that an engine keeps, the last used. Each has buffers of a few images' size and, as a
# CUDA graph, about a kilobyte for each kernel that it launches.
RECORDINGS = 8


class GpuEngine(BaseEngine):
    """A pair on a CUDA device: baked weights, and samplings replayed as CUDA graphs.

    Args:
        model, guide, dtype: As for `autoguide_fast.Engine`.
        recorder: what records, by default the device's `CudaGraphs`; or what stands for it.
        overlap: whether model and guide run on two streams. By default they do where the model's
            first map has fewer than two tiles of 128x128 for each multiprocessor, so that its
            convolutions leave some of them idle: EDM2-S at a batch below 5 on 132.
        float8_options: of `BakedNet`.

    Attributes:
        pair: the prepared nets by their role, "model" and "guide".
        largest: images at a time that memory lasts for, once it did not for more.
    """

    model: BakedNet
    guides: tuple[BakedNet, ...]

    def __init__(
        self,
        model: Denoiser,
        guide: Guides = None,
        dtype: torch.dtype | str | Sequence[torch.dtype | str] = torch.float32,
        recorder: CudaGraphs | None = None,
        overlap: bool | None = None,
        **float8_options: int,
    ) -> None:
        guides = guide_list(guide)
        dtypes = [_chosen(each) for each in dtype_list(dtype, len(guides))]
        check_nets(model, guides)
        self.device = device_of(model)
        if recorder is None and torch.float8_e4m3fn in dtypes:
            capability = torch.cuda.get_device_capability(self.device)
            if capability < (8, 9):
                raise ValueError(
                    "Engine: dtype must be torch.float16 or torch.bfloat16 on a GPU of compute "
                    f"capability {capability[0]}.{capability[1]}, got {torch.float8_e4m3fn}; FP8 "
                    "needs 8.9"
                )
        self.dtype, self.overlap = dtypes[0], overlap
        self.largest: int | None = None
        self.recorder = recorder or CudaGraphs(self.device)
        with self.exclusive(), self.recorder.private_stream():
            made: list[tuple[Denoiser, BakedNet]] = []
            for net, own in zip([model, *guides], dtypes, strict=True):
                known = (b for n, b in made if bare(n) is bare(net) and b.multiplies == own)
                baked = BakedNet(net, own, next(known, None), **float8_options)
                made.append((net, baked))
            self.model, *others = (baked for _, baked in made)
            self.guides = tuple(others)
            for guide_net in self.guides:
                guide_net.alike = share_layers(self.model, guide_net)
        self._recordings: OrderedDict[tuple, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_recordings"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._recordings = OrderedDict()  # which are made when needed

    @property
    def pair(self) -> dict[str, BakedNet]:
        """The prepared nets by their role."""
        roles = guide_roles(len(self.guides))
        return {"model": self.model} | dict(zip(roles, self.guides, strict=True))

    def stepper(
        self,
        guidance: Weight,
        class_labels: Tensor | None,
        steps: Sequence[Step],
        cond: Mapping[str, Cond] | None = None,
    ) -> Stepper:
        """See `BaseEngine.stepper`."""
        return GpuStepper(self, guidance, class_labels, steps, cond)

    def nets(
        self, class_labels: Tensor | None, sigmas: Sequence[float], cond: Mapping[str, Cond] | None
    ) -> Nets:
        """See `BaseEngine.nets`; a recording for each set of nets that is evaluated."""
        return GpuNets(self, cond)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """While inside, the caller alone may make and use recordings, whatever mode torch is in."""
        modes = torch.inference_mode(False), torch.no_grad(), no_autocast(self.device.type)
        with self.recorder.exclusive(), modes[0], modes[1], modes[2]:
            yield

    def recording(
        self,
        key: tuple,
        make: Callable[[CudaGraphs, dict[str, BakedNet], RunBoth], Recording],
        roles: Sequence[str],
    ) -> Recording:
        """The recording `key`, made now or kept; to be called inside `exclusive`.

        `make` is called with recorder, the nets `roles`, and how two of them are run. What is
        recorded stays as precise and deterministic as torch was told to be; told something else,
        it is recorded again.
        """
        key = (*key, settings())
        if key not in self._recordings:
            pair = {role: self.pair[role] for role in roles}
            run_both = (
                self.recorder.run_concurrently if self._overlaps(key[1]) else _one_after_the_other
            )
            with self.recorder.private_stream():
                made = make(self.recorder, pair, run_both)
            while len(self._recordings) >= RECORDINGS:
                self.recorder.synchronize()
                self._recordings.popitem(last=False)
            self._recordings[key] = made
        self._recordings.move_to_end(key)
        return self._recordings[key]

    def close(self) -> None:
        """Release what running took: graphs, their pool and buffers. It may be run again."""
        with self.exclusive():
            self.recorder.synchronize()
            self._recordings.clear()
            self.recorder.release_memory()

    def peak_memory(self, batch: int, threads: int | None = None) -> int:
        """Bytes that torch holds at most on the device while this records and runs, measured.

        That of `batch` images in 2 steps, from scratch, and of whatever else lies there; CUDA's own
        context and graphs are not torch's. `threads` has no meaning here.
        """
        self.close()
        return self.recorder.peak(lambda: self._stepped(batch))

    def profile(self, batch: int = 1, repeats: int = 20) -> Profile:
        """Measure where the time of an evaluation goes, net by net; returns a `Profile`.

        As for `CpuEngine`, with the convolutions and, in each block, what lies between them.
        Launched one by one, not replayed: where the device waits for Python, the wait is counted.
        """
        rows: list[Row] = []
        with self.exclusive():
            for role, net in self.pair.items():
                rows += _timed(role, net, self.recorder, batch, repeats)
        return Profile(rows, batch, self.recorder.name)

    def _stepped(self, batch: int) -> Tensor | None:
        """Two steps of `batch` images, so that everything has been recorded and run."""
        net = self.model
        shape = batch, net.img_channels, net.img_resolution, net.img_resolution
        guidance = 1.0 if not self.guides else 2.0
        steps = plan_steps([2.0, 1.0, 0.0], guidance, device=self.device)
        noise = torch.ones(shape, dtype=torch.float32, device=self.device)
        return self.stepper(guidance, None, steps).whole(noise)

    def _overlaps(self, batch: int) -> bool:
        if self.overlap is not None:
            return self.overlap
        first = next(iter(self.model.unet.enc.values()))
        assert isinstance(first, BakedConv)  # the images' own
        pixels = batch * self.model.img_resolution**2
        tiles = -(-pixels // 128) * -(-len(first.weight) // 128)
        return tiles < 2 * self.recorder.multiprocessors


def _chosen(dtype: torch.dtype | str) -> torch.dtype:
    """A type that nets multiply; "auto" is the fastest of those as good as float32."""
    dtype = torch.float16 if dtype == "auto" else dtype
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise ValueError(
            "Engine: dtype must be torch.float16, torch.bfloat16, torch.float32, "
            f"torch.float8_e4m3fn or 'auto' on a GPU, got {dtype!r}; float16 is as good as "
            "float32 for networks that preserve magnitudes"
        )
    return dtype


def settings() -> tuple:
    """What torch was told about the libraries' products and convolutions."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return (
        cudnn.enabled,
        cudnn.deterministic,
        cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        matmul.fp32_precision,
        matmul.allow_fp16_accumulation,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        torch.are_deterministic_algorithms_enabled(),
    )


def _one_after_the_other(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()


def _timed(role: str, net: BakedNet, recorder: CudaGraphs, batch: int, repeats: int) -> list[Row]:
    """Rows of a `Profile`: each convolution, and each block without its convolutions."""
    marks: list[tuple[Label, torch.cuda.Event, int | None]] = []
    seconds: dict[Label, float] = {}
    work: dict[Label, float] = {}

    def watch(name: Label, module: torch.nn.Module) -> list[RemovableHandle]:
        def before(module: torch.nn.Module, arguments: tuple) -> None:
            marks.append((name, recorder.mark(), len(marks)))

        def after(module: torch.nn.Module, arguments: tuple, result: Tensor) -> None:
            marks.append((name, recorder.mark(), None))
            if name not in work:
                weight = getattr(module, "weight", None)
                pixels = result.shape[0] * result.shape[2] * result.shape[3]
                work[name] = 0.0 if weight is None else 2.0 * weight.numel() * pixels

        return [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after),
        ]

    hooks: list[RemovableHandle] = []
    for layer, module in [*net.unet.enc.items(), *net.unet.dec.items()]:
        if isinstance(module, Block):
            hooks += watch(Label("between", layer), module)
            for child, convolution in module.named_children():
                hooks += watch(Label(child, layer), convolution)
        else:
            hooks += watch(Label(layer), module)
    hooks += watch(Label("out_conv"), net.unet.out_conv)
    modulations = net.modulations(torch.ones(1, device=net.device), None, batch)[0]
    try:
        for repeat in range(2 + repeats):
            marks.clear()
            net.run(Midway(net.image(batch).normal_()), modulations)
            if repeat < 2:
                continue
            opened: list[tuple[Label, torch.cuda.Event, list[float]]] = []
            for name, mark, start in marks:
                if start is not None:
                    opened.append((name, mark, [0.0]))
                    continue
                _, begin, inside = opened.pop()
                total = recorder.seconds(begin, mark)
                seconds[name] = seconds.get(name, 0.0) + total - inside[0]
                if opened:
                    opened[-1][2][0] += total
    finally:
        for hook in hooks:
            hook.remove()
    return [(role, name, seconds[name] / repeats, work[name]) for name in seconds]
