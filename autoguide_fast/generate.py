"""`sample`: from seeds, a model and its guide to images."""

from __future__ import annotations  # so that `help` has the names of types

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import arrays, image_arguments
from .arrays import Array
from .decoding import Decoding, decoded
from .eager import EagerNets, EagerStepper
from .engine import BaseEngine, cached, clear, lacks_memory, unsupported_reason_of
from .guidance import Batch, Guidance, Linear, module_of
from .guided_stepper import Denoise, GuidedStepper, Nets
from .networks import Precond
from .request import GuidanceLike, Interval, Labels, Net, Request, Seeds, checked
from .sampler import Step, Stepper, heun
from .samplers import SAMPLERS, AdaptiveHeun, Sampler
from .schedules import Schedule
from .seeds import StackedRandom

if TYPE_CHECKING:
    from tqdm import tqdm


@dataclass(frozen=True)
class StepInfo:
    """What `sample`'s `callback` gets after each step of each batch."""

    batch: int  # 0 .. num_batches - 1
    num_batches: int | None  # None where `batches` of `sample` hands them out
    step: int  # 0 .. num_steps - 1
    num_steps: int  # of the schedule; "adaptive_heun" takes its own number
    sigma: float | Tensor  # noise level now reached; those of the images there, float64 [N]
    indices: range  # which of the images asked for are in this batch
    x: Tensor  # a copy of their state at `sigma`, [N, *shape]
    evaluations: Tensor  # of the model so far, for each image, int64 [N]

    @property
    def is_last(self) -> bool:
        """Whether the batch is done."""
        sigma = self.sigma
        return bool((sigma == 0).all()) if isinstance(sigma, Tensor) else sigma == 0


def sample(
    model: Net | BaseEngine,
    guide: Net | Sequence[Net] | None = None,
    guidance: GuidanceLike | None = None,
    class_labels: Labels | None = None,
    seeds: Seeds | None = None,
    noise: Array | None = None,
    shape: Sequence[int] | None = None,
    num_steps: int = 32,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    interval: Interval | Sequence[Interval | None] | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
    callback: Callable[[StepInfo], object] | None = None,
    raw: bool | None = None,
    array: str = "torch",
    on_batch: Callable[[range, Any], object] | None = None,
    cond: Mapping[str, Array] | None = None,
    guide_cond: Mapping[str, Array] | Sequence[Mapping[str, Array]] | None = None,
    compute_dtype: torch.dtype | str | None = None,
    sampler: str | Sampler = "heun",
    schedule: Schedule = "rho",
    sigmas: Sequence[float] | Array | None = None,
    init: Array | None = None,
    sigma_start: float | None = None,
    mask: Array | None = None,
    batches: Iterable[range] | None = None,
) -> Tensor | Any:
    """Sample from a model, guided by a worse version of it: images, or data of any other shape.

    Heun's method along the noise levels of `schedules.rho_schedule` (EDM alg. 1; with churn EDM
    alg. 2) for the guided denoiser `D = D0 + guidance (D1 - D0)`, D1 the model, D0 its guide. A
    guide of the same task is autoguidance (arXiv 2406.02507); one without labels is classifier-free
    guidance (`unlabelled(model)` is the model's own). Other samplers, other kinds of guidance and
    several guides are options.

        sample("digits", seeds=range(16))                                      # unguided
        sample("digits", guidance=1.5, class_labels=3, seeds=range(16))        # autoguidance
        sample("digits", "digits-uncond", 1.5, seeds=range(16))                # CFG
        sample("digits", ["digits-guide", "digits-uncond"], [1.5, 1.1], seeds=range(16))
        sample("digits", guidance=APG(1.7), sampler="dpmpp_2m", num_steps=20, seeds=range(16))
        sample(net, worse, 2.0, seeds=range(16), shape=(2, 256))               # signals

    A *sample* is whatever stands after the batch: an image `[C, H, W]`, a signal `[C, L]`, a volume
    or video `[C, T, H, W]`, a set of vectors `[M, D]`, a vector `[D]`. All that is said of images
    below holds for each of them.

    Args:
        model: what to sample: name of a bundled network or of a published preset
            (`autoguide-fast presets`), path of a checkpoint, module, an `Engine`
            (which brings its guide), or any callable `(x, sigma, class_labels) -> D` with
            `x [N, *shape]`, 0-dim `sigma`, labels `[N, label_dim]` (or None), which returns
            denoised samples. It gets copies, so it may write to them, and may return the same
            buffer every time. Modules are fed in their own floating type and are put in evaluation
            mode meanwhile; bare callables are fed in `dtype`.
        guide: likewise; `"digits"` means the guide trained for it. None: no guide, except for a
            bundled net or a preset by name, such as `"digits"` or `"photos"`, whose own guide
            serves. A list is several guides at once, `D = D1 + sum_i (w_i - 1) (D1 - D_i)`
            (arXiv 2406.02507, eq. 6).
        guidance: the weight w. 1 is the model alone: the guide does not run. Above 1 steps away
            from the guide. A function of the noise level gives each its own weight (a host-side
            float for a float; called for the levels of the schedule; `guidance.table` makes one).
            `[N]` numbers are one for each image, `guidance.PerClass` one for each class. For
            several guides a list with any of these for each. An object of `guidance.Guidance` is
            another way of guiding, such as `guidance.APG`. The path of a file that `diagnose`
            wrote, for these same nets, is the weight that it found by noise level; "auto" such a
            file beside the model's. None: that of a preset, otherwise 1.
            A net that was distilled from a pair (`guidance_range` of its options) takes the weight,
            one or `[N]`, as its input, and no guide runs; with a guide beside it, it is the net at
            w = 1 that is guided.
        class_labels: one class for all images, a sequence or int tensor or array `[N]` of classes,
            or one-hot or soft rows `[N, label_dim]`. None draws each image's class from its seed,
            where the model has labels (its attribute `label_dim`). A callable that does not tell
            its `label_dim` gets them as given, one row per image.
        seeds: sequence of ints >= 0 (modulo 2^32), one per image, 10 million at most; may repeat.
            Noise, drawn class and churn of an image come from its seed alone
            (`seeds.StackedRandom`), bit for bit, on any device and for any batch size, order or
            split; the finished images then agree within the rounding of the network's arithmetic.
        noise: standard normal noise `[N, *shape]` to use instead of the seeds', as a tensor or
            array (NumPy's; CuPy's and others' through DLPack); it is only read. Seeds are then
            needed only for what else is drawn: classes, churn.
        shape: sizes of one sample, what stands after N. None: what the model says, or else its
            guide, in the attribute `sample_shape`, or in `img_channels` and `img_resolution`; that
            of `noise` where neither does. Each sample's noise is drawn in this shape from its seed.
        num_steps: steps, 10,000 at most; each but the last evaluates the model twice.
        sigma_min, sigma_max, rho: the noise levels, see `schedules.rho_schedule`. None: 0.002 and
            80, or what the model says in attributes of these names, as those of
            `autoguide_fast.adapters` do. Levels beyond a net's own draw a warning.
        S_churn, S_min, S_max, S_noise: churn, see `schedules.Churn`; 0 for none.
        interval: `(lo, hi)`: guide only where `lo < sigma <= hi`; outside, the guide does not run
            and the guidance counts as 1 (arXiv 2404.07724). For several guides also a list with an
            interval or None for each.
        batch_size: images at a time; None for up to 64.
        device: where to run. None: where the model is; for names and paths the CUDA device if
            there is one, otherwise the CPU.
        dtype: type of the sampler's state, torch.float32 or torch.float64.
        progress: show a progress bar.
        callback: called with a `StepInfo` after each step of each batch. If it returns a tensor
            like `StepInfo.x`, sampling goes on with that.
        raw: True for the samples as they are, False for images as the model's encoder decodes
            them; None decodes where the model has an encoder (its attribute `encoder`, with a
            method `decode`), as loaded ones do.
        array: what to return the result as: `"torch"`, `"numpy"` (on the CPU, with a copy if it is
            on a GPU) or `"cupy"` (on a CUDA device). Not copied otherwise.
        on_batch: called with `(indices, images)` as soon as a batch is done: a range, which of the
            images asked for these are, and what would be returned of them. Nothing is collected
            then, so that memory does not grow with the number of images; None is returned.
        cond: what else the model is told about the images, such as prompts' embeddings: tensors or
            arrays `[N, ...]`, or `[1, ...]` for all images, by the names under which the model
            takes them, `model(x, sigma, class_labels, **cond)`. Batched like the images.
        guide_cond: likewise for the guide. None: the model's; for classifier-free guidance by an
            empty prompt, its embeddings.
        compute_dtype: what networks of this package multiply in the engine that is made for them:
            `dtype` of `Engine`, such as torch.bfloat16, or "auto", the fastest here of the types
            whose samples are as good as float32's. None: float32, or float16 on a GPU for networks
            with `use_fp16`.
        sampler: "heun", or another of `samplers.SAMPLERS`, which evaluate once a step;
            "adaptive_heun", or `samplers.AdaptiveHeun` with a tolerance, whose steps each image
            has for itself; or a function `(denoise, x, sigmas) -> x`, see there.
        schedule: "rho", or another of `schedules.schedule_levels`, or a function
            `(num_steps, sigma_min, sigma_max)` that returns noise levels.
        sigmas: noise levels to visit, falling, in the place of a schedule.
        init: images to begin from, `[N, ...]` or `[1, ...]` for all, as the model sees them, or
            uint8 where its encoder is of pixels: sampling begins at `init + sigma noise`.
        sigma_start: the first noise level with `init`, in the place of `sigma_max`.
        mask: `[N, ...]`, `[H, W]` or what else broadcasts, of numbers from 0 to 1: 1 where images
            are sampled, 0 where `init` stays (inpainting: D is `init` there).
        batches: ranges of the images asked for, to be sampled instead of all of them, each in one
            batch. The next is taken when one has been sampled, so that several processes may share
            the images out among themselves. Needs `on_batch`.

    Returns:
        Samples `[N, *shape]` of type `dtype`, or uint8 images, on the device, in the order of the
        seeds.

    Raises:
        TypeError, ValueError: bad input, before any work.
        FloatingPointError: values became non-finite; names the step and the net. (One number is
            read back from the device for this, after each step or, where all steps run as one CUDA
            graph, at the end.)

    Not differentiable. Randomness comes from the seeds alone; torch's own generator is untouched.
    Nor do torch's default type and device, its grad mode and autocast change the numbers; autocast
    stays on for callables and modules that are not this package's.
    """
    request = checked(**locals())
    with (
        torch.no_grad(),
        _evaluating(*request.nets.values(), request.encoder),
        _bar(request) as bar,
    ):
        return _run(request, bar)


def _run(request: Request, bar: tqdm) -> Tensor | Any:
    """Sample what was asked for, batch by batch; returns what `sample` does."""
    engine = request.engine or _engine(request)
    images = None

    def deliver(indices: range, part: Tensor) -> None:
        # Copied, so that no buffer of an engine or an encoder gets out.
        nonlocal images
        if request.on_batch is not None:
            request.on_batch(indices, arrays.as_kind(part.clone(), request.array))
            return
        if images is None:
            images = part.new_empty([request.num_images, *part.shape[1:]])
        images[indices.start : indices.stop] = part

    with Decoding(request.encoder, request.device, deliver) as decoding:
        for number, indices in enumerate(request.batches):
            decoding.add(indices, _sampled(request, engine, bar, number, indices))
    if request.on_batch is not None:
        return None
    if images is None:
        shape = 0, *request.sample_shape
        empty = torch.empty(shape, device=request.device, dtype=request.dtype)
        images = decoded(request.encoder, empty)
    return arrays.as_kind(images, request.array)


def _sampled(
    request: Request, engine: BaseEngine | None, bar: tqdm, number: int, indices: range
) -> Tensor:
    """Samples of one batch."""
    x, labels, streams = _drawn(request, indices)
    stepper = _stepper(request, engine, labels, indices, streams)
    randn = _randn(request, streams)
    if request.callback is None and not request.progress and request.sampler is None:
        result = stepper.whole(x, randn)
        if result is not None:
            if torch.isfinite(result).all():
                return result
            x, _, streams = _drawn(request, indices)  # once more, step by step, to tell where
            randn = _randn(request, streams)
    if request.sampler is None:
        watch = _watcher(request, bar, stepper, number, indices)
        return heun(stepper, x, request.steps, randn, watch)
    assert isinstance(stepper, GuidedStepper)
    denoise = Denoise(stepper, randn, None)
    denoise.on_step = _watcher(request, bar, stepper, number, indices, denoise)
    levels: Any = stepper.sigmas
    own = isinstance(request.sampler, AdaptiveHeun) or request.sampler in SAMPLERS.values()
    if not own:
        levels = x.new_tensor(levels)  # as functions written for k-diffusion expect
    result = request.sampler(denoise, x * stepper.sigmas[0], levels)
    if not isinstance(result, torch.Tensor) or result.shape != x.shape:
        kind = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise ValueError(
            f"sample: sampler must return the state {list(x.shape)}, got {kind}; return x"
        )
    denoise.finish(result)
    return result.to(x.dtype)


def _stepper(
    request: Request,
    engine: BaseEngine | None,
    labels: Tensor | None,
    indices: range,
    streams: StackedRandom | None,
) -> Stepper:
    part = slice(indices.start, indices.stop)
    cond = {
        role: {name: value if len(value) == 1 else value[part] for name, value in named.items()}
        for role, named in request.cond.items()
    }
    known = None if request.start is None else request.start.known(part)
    guidance = request.guidance
    fused = request.sampler is None and known is None and not request.disturbances
    if fused and not isinstance(guidance, Guidance):
        if engine is not None:
            return engine.stepper(guidance, labels, request.steps, cond)
        guide = request.guides[0] if request.guides else None
        return EagerStepper(request.model, guide, guidance, labels, request.device, cond)
    sigmas = [step.sigma for step in request.steps] + [0.0]
    nets: Nets
    if engine is not None:
        visited = [step.sigma_hat for step in request.steps] + sigmas
        nets, roles = engine.nets(labels, visited, cond), list(engine.by_role)
    else:
        nets, roles = EagerNets(request.nets, cond), list(request.nets)
    if not isinstance(guidance, Guidance):
        count = len(roles) - 1  # an engine that was made for no guidance has no guide
        guidance = Linear([guidance] * count, [request.interval] * count)
    shape = request.sample_shape
    batch = Batch(
        indices=indices,
        num_images=request.num_images,
        class_labels=labels,
        sigmas=tuple(sigmas),
        device=request.device,
        ndim=len(shape),
        randn=None if streams is None else streams.randn,
    )
    disturbing = {role: told.begin(batch) for role, told in request.disturbances.items()}
    begun = guidance.begin(batch)
    return GuidedStepper(nets, roles, begun, labels, sigmas, request.device, known, disturbing)


def _watcher(
    request: Request,
    bar: tqdm,
    stepper: Stepper,
    number: int,
    indices: range,
    denoise: Denoise | None = None,
) -> Callable[[int, Tensor], Tensor | None]:
    """What samplers call after each step of one batch; `denoise` is what those but Heun's call."""

    def on_step(index: int, x: Tensor) -> Tensor | None:
        step: Step | None = None
        reached: float | Tensor
        if denoise is not None and denoise.levels is not None:
            reached = denoise.levels
        else:
            step = request.steps[index]
            reached = step.sigma_next
        _check_finite(index, step, x, stepper, request.names)
        bar.update()
        if request.callback is None:
            return None
        if denoise is None:  # Heun's method, whose last step has no second half
            count = min(2 * index + 2, 2 * len(request.steps) - 1)
            evaluations = torch.full([len(x)], count, device="cpu")
        else:
            evaluations = denoise.evaluations.clone()
        info = StepInfo(
            batch=number,
            num_batches=request.num_batches,
            step=index,
            num_steps=len(request.steps),
            sigma=reached,
            indices=indices,
            x=x.clone(),
            evaluations=evaluations,
        )
        return _changed(request.callback(info), x)

    return on_step


def _changed(returned: object, x: Tensor) -> Tensor | None:
    """What a callback returned: another state, or None to go on with the same."""
    if not isinstance(returned, torch.Tensor):
        return None
    if returned.shape != x.shape or returned.device != x.device:
        raise ValueError(
            f"sample: callback must return nothing or a state {list(x.shape)} on {x.device}, got "
            f"{list(returned.shape)} on {returned.device}; change a copy of StepInfo.x"
        )
    return returned.detach().to(x.dtype, copy=True)


def _engine(request: Request) -> BaseEngine | None:
    """The engine of a pair, or None for nets that are evaluated as they are."""
    runs = isinstance(request.guidance, Guidance) or request.guidance != 1
    guides = request.guides if runs else []
    if reason := unsupported_reason_of(request.model, guides, request.disturbances):
        if all(isinstance(module_of(net), Precond) for net in (request.model, *guides)):
            warnings.warn(
                "sample: evaluating the networks as they are, which is slower: for an engine, "
                f"{reason}",
                stacklevel=4,
            )
        return None
    for _ in range(2):
        try:
            return cached(request.model, guides, request.compute_dtype)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
        clear()  # of other pairs
    warnings.warn(
        "sample: memory does not last for an Engine beside the networks; evaluating them as they "
        "are, which is slower",
        stacklevel=4,
    )
    return None


def _drawn(request: Request, indices: range) -> tuple[Tensor, Tensor | None, StackedRandom | None]:
    """Noise, labels and what draws more noise for the images `indices`."""
    part, shape = slice(indices.start, indices.stop), request.sample_shape
    label_dim = request.label_dim
    x: Tensor | None = None
    labels: Tensor | None = None
    streams: StackedRandom | None = None
    if request.seeds is not None:
        streams = StackedRandom(request.device, request.seeds[part])
        x = streams.randn(shape)
        if label_dim:
            labels = streams.randint(label_dim)
    if request.noise is not None:
        x = request.noise[part].to(request.device)
    if request.classes is not None:
        labels = request.classes[part].to(request.device)
    if label_dim and labels is not None and labels.ndim == 1:
        labels = image_arguments.one_hot(labels, label_dim)
    assert x is not None  # since there are seeds or noise
    x = x.to(request.dtype)
    if request.start is not None:
        x = x + request.start.of(part) / request.steps[0].sigma
    return x, labels, streams


def _randn(request: Request, streams: StackedRandom | None) -> Callable[[], Tensor] | None:
    """What draws noise like the state, from each image's own seed; None without seeds."""
    if streams is None:
        return None
    return functools.partial(streams.randn, request.sample_shape, request.dtype)


@contextlib.contextmanager
def _evaluating(*nets: object) -> Iterator[None]:
    """Puts the modules among these in evaluation mode and back, whatever happens in between."""
    tops = [top for net in nets if (top := module_of(net)) is not None]
    training = [module for top in tops for module in top.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _bar(request: Request) -> tqdm:
    from tqdm import tqdm

    number = request.num_batches
    adaptive = isinstance(request.sampler, AdaptiveHeun)
    total = None if number is None or adaptive else number * len(request.steps)
    return tqdm(total=total, unit="step", disable=not request.progress)


def _check_finite(
    index: int, step: Step | None, x: Tensor, stepper: Stepper, names: Mapping[str, str]
) -> None:
    # A sum is finite only if all of it is; it costs no memory, as the second question does.
    if torch.isfinite(x.sum()) or torch.isfinite(x).all():
        return
    where = f"step {index + 1}"
    if step is not None:
        where += f" of {step.num_steps} (sigma {step.sigma_hat:.4g} to {step.sigma_next:.4g})"
    role = next((role for role, y in stepper.outputs if not torch.isfinite(y).all()), "state")
    if role == "state":
        raise FloatingPointError(
            f"sample: the state must stay finite, got NaN or infinity in {where} though model and "
            "guide returned finite values; lower guidance or sigma_max"
        )
    raise FloatingPointError(
        f"sample: output of the {names[role]} must be finite, got NaN or infinity in {where}; "
        "check its weights, and whether float16 overflows"
    )
