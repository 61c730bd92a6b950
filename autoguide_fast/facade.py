"""`Engine`, the public face of all engines: a pair made ready once, to be run many times."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .engine import (
    BaseEngine,
    Guides,
    Profile,
    guide_list,
    make_engine,
    of_modules,
    undisturbed_nets,
    unsupported_reason_of,
)
from .generate import sample
from .guidance import Cond, Denoiser, Weight, fingerprint
from .guided_stepper import Nets
from .sampler import Step, Stepper


class Engine(BaseEngine):
    """A model and its guide, made ready to run where they are: on the CPU or on a CUDA device.

    Weights of a `Precond` are normalised, scaled, transformed and laid out once. On the CPU each
    evaluation then runs a plan of fused instructions over an arena that is never reallocated
    (`csrc/engine/`). On a CUDA device the library's convolutions and the fused operators are
    recorded as a CUDA graph, whole samplings at a time, and replayed (`engine/gpu_engine.py`; **not
    run on a GPU yet**). The engine is a snapshot: later changes of the nets do not reach it, and it
    does not keep them alive.

    How each convolution is computed fastest on this CPU is measured when the first engine with its
    shape is made, and kept (docs/speed.md); `info` tells. `AGF_AUTOTUNE=0` takes static rules.

    Other modules, such as those of `autoguide_fast.adapters`, are held as they are and run under
    `torch.compile`, or recorded on a CUDA device (`engine/module_engine.py`).

        engine = Engine(load("digits"), load("digits-guide"))
        images = engine.sample(guidance=1.7, seeds=range(64))

    Args:
        model: a float32 `Precond`, which may be wrapped by `unlabelled`, or any other module.
        guide: likewise, on the same device; of `Precond`s, with the `sigma_data` of the model. A
            list of several is for several guides at once.
        dtype: one for all nets, or a list with one for the model and each guide. Of modules that
            are no `Precond`, their own. Of others, on the CPU, what convolutions and attention
            multiply: torch.float32; torch.bfloat16, with float32 sums; torch.int8, with int32 sums
            and constant scales (attention in bfloat16, as are convolutions where that is faster
            than int8; it is no less precise). All else is float32, as is attention on a processor
            that does not multiply bfloat16. On a CUDA device, the type of weights
            and maps: torch.float32 (as precise as `torch.backends.cudnn.allow_tf32` lets it be),
            torch.float16, torch.bfloat16; torch.float8_e4m3fn for float16 whose wide convolutions
            multiply FP8, which costs quality (`engine/float8.py`). Embedding, state and steps are
            float32. "auto" takes the fastest here of those whose samples are as good as float32's:
            float16 on a CUDA device; on a CPU bfloat16 or float32, whichever is measured to be
            faster for the net.

    Attributes:
        model, guides: the prepared denoisers, `(x, sigma, class_labels) -> D` as those that they
            were made of; `guide` is the first of the guides, or None. Not differentiable: they
            refuse tensors that require gradients in gradient mode, and those of forward mode and
            `torch.func`.
        dtype: of the model, as given, or as "auto" chose.
        device: where it runs.

    Raises:
        ValueError: nets that it cannot run (`Engine.runs` tells beforehand): any whose options and
            weights do not say all, because a method, a layer, an attribute or a function of torch
            was replaced, a hook added or a mode of torch is active, is named with what is in the
            way; or another dtype.

    May be shared by threads, which then run one after the other, copied and pickled. `sample` makes
    engines by itself and keeps the last few. `close`, or the end of a `with`, releases the memory
    that running takes.
    """

    def __init__(
        self,
        model: Denoiser,
        guide: Guides = None,
        dtype: torch.dtype
        | Literal["auto"]
        | Sequence[torch.dtype | Literal["auto"]] = torch.float32,
        **options: Any,
    ) -> None:
        model, guides, self.disturbances = undisturbed_nets(model, guide_list(guide))
        if any(told.dropout for told in self.disturbances.values()):
            raise ValueError(f"Engine: {unsupported_reason_of(model, guides, self.disturbances)}")
        self._engine = make_engine(model, guides, dtype, **options)
        self.fingerprints = tuple(fingerprint(net) for net in (model, *guides))

    # Read-only, unlike those of the engine behind it.
    @property
    def model(self) -> Denoiser:  # type: ignore[override]
        return self._engine.model

    @property
    def guides(self) -> tuple[Denoiser, ...]:  # type: ignore[override]
        return self._engine.guides

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self._engine.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._engine.device

    @staticmethod
    def runs(model: Denoiser, guide: Guides = None) -> bool:
        """Whether an engine can be made of these: plain float32 `Precond`s, or other modules."""
        model, guides, disturbances = undisturbed_nets(model, guide_list(guide))
        if any(told.dropout for told in disturbances.values()):
            return False
        return of_modules(model, guides) or unsupported_reason_of(model, guides) is None

    def sample(self, **options: Any) -> Tensor | Any:
        """Draw samples: `autoguide_fast.sample` with this engine's pair and the given options."""
        return sample(self, **options)

    def stepper(
        self,
        guidance: Weight,
        class_labels: Tensor | None,
        steps: Sequence[Step],
        cond: Mapping[str, Cond] | None = None,
    ) -> Stepper:
        """A stepper of this pair for `sampler.heun`.

        Args:
            guidance: the weight w, a number or a function of the noise level.
            class_labels: `[N or 1, label_dim]`, or None.
            steps: those that will be run.
            cond: conditioning of each net by its role, for modules of other libraries.
        """
        return self._engine.stepper(guidance, class_labels, steps, cond)

    def nets(
        self, class_labels: Tensor | None, sigmas: Sequence[float], cond: Mapping[str, Cond] | None
    ) -> Nets:
        """Model and guides for a `guided_stepper.GuidedStepper`, by the roles of `by_role`.

        Args:
            class_labels: `[N or 1, label_dim]`, or None: those that most evaluations will have.
            sigmas: noise levels at which most evaluations will be.
            cond: conditioning of each net by its role, for modules of other libraries.
        """
        return self._engine.nets(class_labels, sigmas, cond)

    @property
    def takes_cond(self) -> bool:  # type: ignore[override]
        return self._engine.takes_cond

    def close(self) -> None:
        """Release the memory that running takes, not that of the weights; it may run again."""
        self._engine.close()

    def peak_memory(self, batch: int, threads: int | None = None) -> int:
        """Bytes that sampling `batch` images takes.

        On the CPU, what the engine holds meanwhile: weights, arena, state. `threads` is that of
        torch unless given. Grows with the batch by a few images' own bytes only: feature maps are
        those of the few images that each thread has under way. The networks that the engine was
        made of are not counted: it does not need them, but whoever passes them to `sample`, which
        makes an engine by itself, holds both.

        On a GPU, what torch holds at most on the device, measured while 2 steps are recorded and
        run from scratch, whatever else lies there included; `threads` has no meaning there.
        """
        return self._engine.peak_memory(batch, threads)

    def info(self) -> str:
        """What runs here, and why, as lines for people.

        On the CPU: the type of each net; of each of its convolutions the algorithm, and what it was
        taken for: milliseconds of each candidate for one image and for four on one thread, or a
        static rule. `AGF_AUTOTUNE=0` takes static rules alone.
        """
        return self._engine.info()

    def profile(self, batch: int = 1, repeats: int = 20) -> Profile:
        """Measure where the time of an evaluation goes, net by net; returns a `Profile`.

        Runs the nets on noise at one noise level, `repeats` times after two that do not count. On
        the CPU, times are those of the first thread, which waits for the others after each
        instruction. On a GPU, kernels are launched one by one, not replayed: where the device waits
        for Python, the wait is counted.
        """
        return self._engine.profile(batch, repeats)
