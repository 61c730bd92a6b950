"""`Engine`: a trained pair made ready once, to be run many times."""

import torch

from .._extension import build_info
from ..guidance import bare
from .prepared import CELLS, Arena, PreparedNet, device_of, objection
from .profile import Profile
from .stepper import EngineStepper


class Engine:
    """A model and its guide, made ready to run where they are: on the CPU or on a CUDA device.

    Weights are normalised, scaled, transformed and laid out once. On the CPU each evaluation then
    runs a plan of fused instructions over an arena that is never reallocated (`csrc/engine/`). On a
    CUDA device the library's convolutions and the fused operators are recorded as a CUDA graph,
    whole samplings at a time, and replayed (`graph_engine.py`; **not run on a GPU yet**). The
    engine is a snapshot: later changes of the nets do not reach it, and it does not keep them
    alive.

        engine = Engine(load("digits"), load("digits-guide"))
        images = engine.sample(guidance=1.7, seeds=range(64))

    Args:
        model (Precond): float32; may be wrapped by `unlabelled`.
        guide (Precond or None): Likewise, on the same device and with the `sigma_data` of the
            model.
        dtype (torch.dtype or "auto"): On the CPU, what convolutions and attention multiply:
            torch.float32; torch.bfloat16, with float32 sums; torch.int8, with int32 sums and
            constant scales (attention in bfloat16, as are 3x3 convolutions of maps of 32x32 pixels
            or more, where Winograd's larger tiles make that faster than int8 and no less precise).
            All else is float32, as is attention on a processor that does not multiply bfloat16,
            where int8 is all of the convolutions. On a CUDA device, the type of weights and
            maps: torch.float32 (as precise as `torch.backends.cudnn.allow_tf32` lets it be),
            torch.float16, torch.bfloat16; torch.float8_e4m3fn for float16 whose wide convolutions
            multiply FP8, which costs quality (`float8.py`).
            Embedding, state and steps are float32. "auto" takes the fastest here of those whose
            samples are as good as float32's: float16 on a CUDA device, bfloat16 on a CPU that
            multiplies it (AVX-512 BF16), else float32.

    Attributes:
        model, guide (callable): The prepared denoisers, `(x, sigma, class_labels) -> D` as those
            that they were made of; `guide` may be None. Not differentiable: they refuse tensors
            that require gradients in gradient mode, and those of forward mode and `torch.func`.
        dtype (torch.dtype): As given, or as "auto" chose.
        device (torch.device): Where it runs.

    Raises:
        ValueError: nets that it cannot run (`Engine.runs` tells beforehand): any whose options and
            weights do not say all, because a method, a layer, an attribute or a function of torch
            was replaced, a hook added or a mode of torch is active, is named with what is in the
            way; or another dtype.

    May be shared by threads, which then take turns, copied and pickled. `sample` makes engines by
    itself and keeps the last few. `close`, or the end of a `with`, gives back the memory that
    running takes.
    """

    def __new__(cls, model, *args, **options):
        if cls is Engine and objection(model) is None and device_of(model).type == "cuda":
            from .graph_engine import GraphEngine  # it stands above this one

            cls = GraphEngine
        return super().__new__(cls)

    def __reduce__(self):
        # What is packed, not the nets, which are not kept.
        return _restored, (type(self), build_info()["version"], self.__getstate__())

    def __getstate__(self):
        return vars(self).copy()

    def __setstate__(self, state):
        vars(self).update(state)

    def __init__(self, model, guide=None, dtype=torch.float32):
        if dtype == "auto":
            dtype = torch.bfloat16 if build_info()["isa"] == "avx512_bf16" else torch.float32
        if dtype not in CELLS:
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

    @staticmethod
    def runs(model, guide=None):
        """Whether an engine can be made of these: plain float32 `Precond`s on one device."""
        return pair_objection(model, guide) is None

    def sample(self, **options):
        """Draw samples: `autoguide_fast.sample` with this engine's pair and the given options."""
        from ..generate import sample  # it stands above the engine

        return sample(self, **options)

    def stepper(self, guidance, class_labels, steps):
        """A stepper of this pair for `sampler.heun`.

        Args:
            guidance (float): The weight w.
            class_labels (Tensor [N or 1, label_dim] or None)
            steps (list of sampler.Step): The steps that will be run.
        """
        return EngineStepper(self.model, self.guide, guidance, class_labels, steps)

    def close(self):
        """Give back the memory that running takes, not that of the weights; it may run again."""
        with self._arena.lock:
            self._arena.release()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def peak_memory(self, batch, threads=None):
        """Bytes that the engine holds while it samples `batch` images: weights, arena, state.

        `threads` is that of torch unless given. Grows with the batch by a few images' own bytes
        only: feature maps are those of the few images that each thread has under way. The networks
        that the engine was made of are not counted: it does not need them, but whoever passes them
        to `sample`, which makes an engine by itself, holds both.
        """
        threads = threads or torch.get_num_threads()
        nets = [net for net in (self.model, self.guide) if net is not None]
        weights = {id(net.lowered): net.weight_bytes for net in nets}
        arena = max(net.arena_bytes(batch, threads) for net in nets)
        image = 4 * self.model.img_channels * self.model.img_resolution**2
        # What EngineStepper holds: its state, of float32, and two outputs of each net.
        state = (4 + 2 * len(nets)) * batch * image
        return sum(weights.values()) + arena + state

    def profile(self, batch=1, repeats=20):
        """Measure where the time of an evaluation goes, net by net; returns a `Profile`.

        Runs the nets on noise at one noise level, `repeats` times after two that do not count.
        Times are those of the first thread, which waits for the others after each instruction.
        """
        rows = []
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


def _restored(kind, version, state):
    """The engine with this state: what copies and pickles are made with."""
    if version != build_info()["version"]:
        raise ValueError(
            f"Engine: pickles must be of autoguide_fast {build_info()['version']}, got one of "
            f"{version}, whose packed weights may differ; pickle the networks, and make it anew"
        )
    engine = object.__new__(kind)
    engine.__setstate__(state)
    return engine


def check_pair(model, guide):
    """Raise ValueError where an engine cannot be made of these."""
    if reason := pair_objection(model, guide):
        raise ValueError(f"Engine: {reason}")


def pair_objection(model, guide):
    """What keeps a pair from being made ready, as the rest of a message, or None."""
    for role, net in (("model", model), ("guide", guide)):
        reason = None if role == "guide" and net is None else objection(net)
        if reason:
            return f"{role} must be a plain float32 Precond, got {reason}"
    if guide is None:
        return None
    if guide.sigma_data != model.sigma_data:
        return (
            f"guide must have the model's sigma_data {model.sigma_data:g}, got "
            f"{guide.sigma_data:g}; the fused step preconditions both alike"
        )
    if device_of(guide) != device_of(model):
        return (
            f"guide must be on the model's device {device_of(model)}, got one on "
            f"{device_of(guide)}; move it with .to()"
        )
    return None
