"""`sample`: from seeds, a model and its guide to images."""

import contextlib
import math
import os
import warnings
from dataclasses import dataclass

import torch

from . import arguments, arrays, checkpoints
from .encoders import LatentEncoder
from .engine import Engine, cached, clear, lacks_memory, pair_objection
from .guidance import module_of
from .networks import Precond
from .sampler import EagerStepper, heun, plan_steps
from .schedules import Churn, rho_schedule
from .seeds import StackedRandom

DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True)
class StepInfo:
    """What `sample`'s `callback` gets after each step of each batch."""

    batch: int  # 0 .. num_batches - 1
    num_batches: int
    step: int  # 0 .. num_steps - 1
    num_steps: int
    sigma: float  # noise level now reached
    indices: range  # which of the images asked for are in this batch
    x: torch.Tensor  # a copy of their state at `sigma`, [N, C, H, W]


def sample(
    model,
    guide=None,
    guidance=1.0,
    class_labels=None,
    seeds=None,
    noise=None,
    num_steps=32,
    sigma_min=0.002,
    sigma_max=80.0,
    rho=7.0,
    S_churn=0.0,
    S_min=0.0,
    S_max=math.inf,
    S_noise=1.0,
    interval=None,
    batch_size=None,
    device=None,
    dtype=torch.float32,
    progress=False,
    callback=None,
    raw=None,
    array="torch",
    on_batch=None,
):
    """Sample images from a model, guided by a worse version of it.

    Heun's method along the noise levels of `schedules.rho_schedule` (EDM alg. 1; with churn EDM
    alg. 2) for the guided denoiser `D = D0 + guidance (D1 - D0)`, D1 the model, D0 its guide. A
    guide of the same task is autoguidance (arXiv 2406.02507); one without labels is classifier-free
    guidance (`unlabelled(model)` is the model's own).

        sample("digits", seeds=range(16))                                      # unguided
        sample("digits", guidance=1.5, class_labels=3, seeds=range(16))        # autoguidance
        sample("digits", "digits-uncond", 1.5, seeds=range(16))                # CFG

    Args:
        model: what to sample: name of a bundled network, path of a checkpoint, module, an `Engine`
            (which brings its guide), or any callable `(x, sigma, class_labels) -> D` with
            `x [N, C, H, W]`, 0-dim `sigma`, labels `[N, label_dim]` (or None), which returns the
            denoised images. It gets copies, so it may write to them, and may return the same buffer
            every time. Modules are fed in their own floating type and are put in evaluation mode
            meanwhile; bare callables are fed in `dtype`.
        guide: likewise; `"digits"` means the guide trained for it. None: no guide, except for a
            bundled net by name, such as `"digits"` or `"photos"`, whose own guide serves.
        guidance: the weight w. 1 is the model alone: the guide does not run. Above 1 steps away
            from the guide.
        class_labels: one class for all images, a sequence or int tensor or array `[N]` of classes,
            or one-hot or soft rows `[N, label_dim]`. None draws each image's class from its seed,
            where the model has labels (its attribute `label_dim`). A callable that does not tell
            its `label_dim` gets them as given, one row per image.
        seeds: sequence of ints >= 0 (modulo 2^32), one per image, 10 million at most; may repeat.
            Noise, drawn class and churn of an image come from its seed alone
            (`seeds.StackedRandom`), bit for bit, on any device and for any batch size, order or
            split; the finished images then agree within the rounding of the network's arithmetic.
        noise: standard normal noise `[N, C, H, W]` to use instead of the seeds', as a tensor or
            array (NumPy's; CuPy's and others' through DLPack); it is only read. Seeds are then
            needed only for what else is drawn: classes, churn. A callable that does not tell its
            `img_channels` and `img_resolution` needs it.
        num_steps: steps, 10,000 at most; each but the last evaluates the model twice.
        sigma_min, sigma_max, rho: the noise levels, see `schedules.rho_schedule`.
        S_churn, S_min, S_max, S_noise: churn, see `schedules.Churn`; 0 for none.
        interval: `(lo, hi)`: guide only where `lo < sigma <= hi`; outside, the guide does not run
            and the guidance counts as 1 (arXiv 2404.07724).
        batch_size: images at a time; None for up to 64.
        device: where to run. None: where the model is; for names and paths the CUDA device if
            there is one, otherwise the CPU.
        dtype: type of the sampler's state, torch.float32 or torch.float64.
        progress: show a progress bar.
        callback: called with a `StepInfo` after each step of each batch.
        raw: True for the samples as they are, False for images as the model's encoder decodes
            them; None decodes where the model has an encoder (its attribute `encoder`, with a
            method `decode`), as loaded ones do.
        array: what to return the result as: `"torch"`, `"numpy"` (on the CPU, with a copy if it is
            on a GPU) or `"cupy"` (on a CUDA device). Not copied otherwise.
        on_batch: called with `(indices, images)` as soon as a batch is done: a range, which of the
            images asked for these are, and what would be returned of them. Nothing is collected
            then, so that memory does not grow with the number of images; None is returned.

    Returns:
        Samples `[N, C, H, W]` of type `dtype`, or uint8 images, on the device, in the order of the
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
    arguments.state_dtype(dtype)
    num_steps, sigma_min, sigma_max, rho = arguments.noise_levels(
        num_steps, sigma_min, sigma_max, rho, dtype
    )
    churn = Churn(*arguments.churn_values(S_churn, S_min, S_max, S_noise))
    interval = arguments.guidance_interval(interval)
    guidance = arguments.weight(guidance)
    if batch_size is not None:
        batch_size = arguments.count("batch_size", batch_size, "leave it out for up to 64")
    raw = arguments.flag("raw", raw, (True, False, None), "None decodes where there is an encoder")
    progress = arguments.flag("progress", progress, (True, False), "True shows a bar")
    if seeds is not None or noise is None:
        seeds = arguments.image_seeds(seeds)
    for name, function, given in (
        ("callback", callback, "a StepInfo after each step"),
        ("on_batch", on_batch, "indices and images after each batch"),
    ):
        if function is not None and not callable(function):
            raise TypeError(
                f"sample: {name} must be callable, got {type(function).__name__}; it is called "
                f"with {given}"
            )
    if device is not None:
        device = arguments.present_device(device)
    arguments.array_kind(array, device)

    engine = model if isinstance(model, Engine) else None
    if engine is not None:
        model, guide = _engine_pair(engine, guide, guidance, device)
        device = engine.device
    if noise is not None:
        noise = arguments.tensor_of_noise(noise)
    names = {"model": _described(model, "model"), "guide": _described(guide, "guide")}
    given = {"model": model, "guide": guide}
    model, guide, device = _nets(model, guide, guidance, device, noise)
    arguments.array_kind(array, device)
    arguments.nets_agree(model, guide)
    shape = arguments.image_shape(model, guide)
    if noise is not None:
        noise = arguments.given_noise(noise, shape, seeds, dtype)
    elif shape is None:
        raise ValueError(
            "sample: noise must be given for a callable without img_channels and img_resolution, "
            "got None; pass noise=StackedRandom('cpu', seeds).randn([C, H, W]) of "
            "autoguide_fast.seeds, or set the two attributes"
        )
    num_images = len(seeds if noise is None else noise)
    label_dim = arguments.label_dim(model, guide)
    classes = arguments.labels(class_labels, num_images, label_dim)
    if seeds is None and (churn.S_churn or (classes is None and label_dim)):
        needed = "churn is added" if churn.S_churn else "classes are drawn"
        raise ValueError(
            f"sample: seeds must be given beside noise where {needed}, got None; pass one seed per "
            "image" + ("" if churn.S_churn else ", or class_labels")
        )
    encoder = arguments.decoder(model, raw, shape or noise.shape[1:])
    if isinstance(encoder, LatentEncoder):
        encoder.load()
    if engine is None:
        for role, net in given.items():  # those that were loaded here have been looked at
            if (module := module_of(net)) is not None:
                arguments.finite_weights(names[role], module)

    sigmas = rho_schedule(num_steps, sigma_min, sigma_max, rho, dtype)
    steps = plan_steps(sigmas, guidance, interval, churn, device)
    batch_size = batch_size or DEFAULT_BATCH_SIZE
    batches = [
        range(start, min(start + batch_size, num_images))
        for start in range(0, num_images, batch_size)
    ]
    images = None
    with torch.no_grad(), _evaluating(model, guide, encoder), _bar(progress, batches, steps) as bar:
        used = (model, guide if guidance != 1 else None)
        if engine is None:
            engine = _engine(*used)
        for number, indices in enumerate(batches):
            source = indices, seeds, noise, classes, label_dim, shape, device, dtype
            x, labels, randn = _drawn(*source)
            if engine is None:
                stepper = EagerStepper(model, guide, guidance, labels, device)
            else:
                stepper = engine.stepper(guidance, labels, steps)

            def on_step(step, x, number=number, indices=indices, stepper=stepper):
                _check_finite(step, x, stepper, names)
                bar.update()
                if callback is not None:
                    info = StepInfo(
                        number,
                        len(batches),
                        step.index,
                        num_steps,
                        step.sigma_next,
                        indices,
                        x.clone(),
                    )
                    callback(info)

            result = None
            if hasattr(stepper, "whole") and callback is None and not progress:
                result = stepper.whole(x, randn)
                if not torch.isfinite(result).all():
                    # Once more, step by step, to tell where.
                    x, _, randn = _drawn(*source)
                    result = None
            x = heun(stepper, x, steps, randn, on_step) if result is None else result
            part = _decoded(encoder, x)
            # Copied, so that no buffer of an engine or an encoder gets out.
            if on_batch is not None:
                on_batch(indices, arrays.as_kind(part.clone(), array))
                continue
            if images is None:
                images = part.new_empty([num_images, *part.shape[1:]])
            images[indices.start : indices.stop] = part
    if on_batch is not None:
        return None
    if images is None:
        empty = torch.empty([0, *(shape or noise.shape[1:])], device=device, dtype=dtype)
        with torch.no_grad():
            images = _decoded(encoder, empty)
    return arrays.as_kind(images, array)


def _engine(*nets):
    """The engine of a pair, or None for nets that are evaluated as they are."""
    if reason := pair_objection(*nets):
        if all(net is None or isinstance(module_of(net), Precond) for net in nets):
            warnings.warn(
                "sample: evaluating the networks as they are, which is slower: for an engine, "
                f"{reason}",
                stacklevel=3,
            )
        return None
    for _ in range(2):
        try:
            return cached(*nets)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
        clear()  # of other pairs
    warnings.warn(
        "sample: memory does not last for an Engine beside the networks; evaluating them as they "
        "are, which is slower",
        stacklevel=3,
    )
    return None


def _engine_pair(engine, guide, guidance, device):
    if device is not None and device != engine.device:
        raise ValueError(
            f"sample: device must be {engine.device} for this Engine, got {device}; pass the "
            "networks themselves"
        )
    if guide is not None:
        raise ValueError(
            "sample: guide must be left out for an Engine, which has its own, got "
            f"{type(guide).__name__}; make Engine(model, guide)"
        )
    if engine.guide is None and guidance != 1:
        raise ValueError(
            f"sample: guidance must be 1 for an Engine without a guide, got {guidance:g}; make "
            "Engine(model, guide)"
        )
    return engine.model, engine.guide


def _described(net, role):
    return f"{role} {os.fspath(net)!r}" if isinstance(net, (str, os.PathLike)) else role


def _nets(model, guide, guidance, device, noise):
    """The two nets as callables on one device, which is returned too; loads names and paths."""
    if isinstance(model, (str, os.PathLike)) and guide is None and guidance != 1:
        guide = checkpoints.bundled_guide(model)
    elif isinstance(guide, str):
        guide = checkpoints.bundled_guide(guide) or guide
    if guide is None and guidance != 1:
        raise ValueError(
            f"sample: guide must be given where guidance is not 1, got None at guidance "
            f"{guidance:g}; pass a worse version of the model, or unlabelled(model) for CFG"
        )
    nets = {"model": model, "guide": guide}
    for role, net in nets.items():
        if isinstance(net, (str, os.PathLike)):
            nets[role] = checkpoints.find(net, f"sample: {role}")
        elif (not callable(net) or isinstance(net, type)) and not (role == "guide" and net is None):
            raise TypeError(
                f"sample: {role} must be a name, a path or a callable (x, sigma, class_labels) -> "
                f"D, got {type(net).__name__}; load a checkpoint with autoguide_fast.load"
            )

    modules = {role: module_of(net) for role, net in nets.items()}
    found = {
        role: next((p.device for p in module.parameters()), None)
        for role, module in modules.items()
        if module is not None
    }
    if device is None:
        device = found.get("model") or found.get("guide")
        if device is not None:
            arguments.present_device(device, argument="the networks' device")
    if device is None and noise is not None:
        device = noise.device
    if device is None:
        named = any(isinstance(net, os.PathLike) for net in nets.values())
        device = "cuda" if named and torch.cuda.is_available() else "cpu"
        device = arguments.present_device(device)
    for role, place in found.items():
        if place is not None and place != device:
            raise ValueError(
                f"sample: {role} must be on {device}, got one on {place}; move it there with "
                f".to({str(device)!r}), or pass device={str(place)!r}"
            )
    for role, net in nets.items():
        if isinstance(net, os.PathLike):
            nets[role] = checkpoints.load(net, device)
    return nets["model"], nets["guide"], device


def _drawn(indices, seeds, noise, given, label_dim, shape, device, dtype):
    """Noise, labels and the source of churn noise for the images `indices`.

    `given` are the labels of all images as `arguments.labels` returns them.
    """
    part = slice(indices.start, indices.stop)
    shape = shape or noise.shape[1:]
    x, labels, randn = None, None, None
    if seeds is not None:
        streams = StackedRandom(device, seeds[part])
        x = streams.randn(shape)
        if label_dim:
            labels = streams.randint(label_dim)

        def randn():
            return streams.randn(shape, dtype)

    if noise is not None:
        x = noise[part].to(device)
    if given is not None:
        labels = given[part].to(device)
    if label_dim and labels.ndim == 1:
        labels = arguments.one_hot(labels, label_dim)
    return x.to(dtype), labels, randn


def _decoded(encoder, x):
    """What an encoder makes of samples `x`, which are themselves what there is without one."""
    if encoder is None:
        return x
    images = encoder.decode(x)
    if not isinstance(images, torch.Tensor) or images.ndim == 0 or len(images) != len(x):
        got = list(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(
            f"sample: model.encoder must decode {len(x)} samples to a tensor of as many images, "
            f"got {got}; return uint8 [{len(x)}, C, H, W], or pass raw=True"
        )
    return images


@contextlib.contextmanager
def _evaluating(*nets):
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


def _bar(progress, batches, steps):
    from tqdm import tqdm

    return tqdm(total=len(batches) * len(steps), unit="step", disable=not progress)


def _check_finite(step, x, stepper, names):
    # A sum is finite only if all of it is; it costs no memory, as the second question does.
    if torch.isfinite(x.sum()) or torch.isfinite(x).all():
        return
    where = (
        f"step {step.index + 1} of {step.num_steps} (sigma {step.sigma_hat:.4g} to "
        f"{step.sigma_next:.4g})"
    )
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
