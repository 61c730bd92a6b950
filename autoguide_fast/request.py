"""Everything that `sample` is asked for, checked before any work: `checked` makes a `Request`."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import arguments, checkpoints
from .arrays import Array
from .encoders import Decoder, LatentEncoder
from .engine import BaseEngine, pair_unsupported_reason
from .guidance import Denoiser, Weight, module_of
from .networks import Precond
from .sampler import Step, plan_steps
from .schedules import Churn, rho_schedule

DEFAULT_BATCH_SIZE = 64

# What `sample` takes for a model or a guide, for seeds and for labels.
Net = str | os.PathLike | Denoiser
Seeds = Iterable[int] | Array
Labels = int | Sequence[int] | Sequence[Sequence[float]] | Array


@dataclass(frozen=True, eq=False)
class Request:
    """One call of `sample`, checked: what will be run, and where.

    Attributes:
        model, guide: what will be evaluated; guide None where there is none.
        names: what messages call them, by role.
        engine: the one whose nets these are, or None for nets that come by themselves.
        guidance: the weight w, a number or a function of the noise level.
        steps: all steps, on `device`.
        num_images, batch_size: how many, and how many at a time.
        sample_shape: what stands after N, (C, H, W) for images.
        seeds: one per image, or None where `noise` and `classes` say all.
        noise: that of all images, where it lies, or None to draw it from the seeds.
        classes: labels of all images on the CPU, as of `arguments.labels`.
        label_dim: number of classes, None where neither net tells.
        cond: what else the nets are told about all images, on `device`: by role, then by name.
        device, dtype: of the state.
        encoder: what decodes samples, or None for raw ones.
        array, progress, callback, on_batch, compute_dtype: as for `sample`.
    """

    model: Denoiser
    guide: Denoiser | None
    names: dict[str, str]
    engine: BaseEngine | None
    guidance: Weight
    steps: tuple[Step, ...]
    num_images: int
    batch_size: int
    sample_shape: tuple[int, ...]
    seeds: Sequence[int] | None
    noise: Tensor | None
    classes: Tensor | None
    label_dim: int | None
    cond: dict[str, dict[str, Tensor]]
    device: torch.device
    dtype: torch.dtype
    encoder: Decoder | None
    array: str
    progress: bool
    callback: Callable | None
    on_batch: Callable | None
    compute_dtype: torch.dtype | str | None

    @property
    def batches(self) -> list[range]:
        """Which images each batch has."""
        count, size = self.num_images, self.batch_size
        return [range(start, min(start + size, count)) for start in range(0, count, size)]


def checked(
    model: Net | BaseEngine,
    guide: Net | None,
    guidance: Weight | None,
    class_labels: Labels | None,
    seeds: Seeds | None,
    noise: Array | None,
    shape: Sequence[int] | None,
    num_steps: int,
    sigma_min: float | None,
    sigma_max: float | None,
    rho: float,
    S_churn: float,
    S_min: float,
    S_max: float,
    S_noise: float,
    interval: tuple[float, float] | None,
    batch_size: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
    progress: bool,
    callback: Callable | None,
    raw: bool | None,
    array: str,
    on_batch: Callable | None,
    cond: Mapping[str, Array] | None,
    guide_cond: Mapping[str, Array] | None,
    compute_dtype: torch.dtype | str | None,
) -> Request:
    """The `Request` for these arguments of `sample`, documented there; networks are loaded.

    Raises:
        TypeError, ValueError: bad input.
    """
    # What each argument says by itself.
    arguments.state_dtype(dtype)
    pair = (model.model, model.guide) if isinstance(model, BaseEngine) else (model, guide)

    def noise_levels(*nets: object) -> tuple[int, float, float, float]:
        low, high = arguments.trained_levels(sigma_min, sigma_max, *nets)
        return arguments.noise_levels(num_steps, low, high, rho, dtype)

    levels = noise_levels(*pair)
    churn = Churn(*arguments.churn_values(S_churn, S_min, S_max, S_noise))
    interval = arguments.guidance_interval(interval)
    guidance = arguments.weight(
        checkpoints.default_guidance(model) if guidance is None else guidance
    )
    if batch_size is None:
        batch_size = DEFAULT_BATCH_SIZE
    else:
        batch_size = arguments.count("batch_size", batch_size, "leave it out for up to 64")
    raw = arguments.flag("raw", raw, (True, False, None), "None decodes where there is an encoder")
    progress = arguments.flag("progress", progress, (True, False), "True shows a bar")
    if seeds is not None or noise is None:
        seeds = arguments.image_seeds(seeds)
    arguments.function_or_none("callback", callback, "a StepInfo after each step")
    arguments.function_or_none("on_batch", on_batch, "indices and images after each batch")
    if device is not None:
        device = arguments.present_device(device)
    arguments.array_kind(array, device)

    # The networks, and what they say.
    engine = None
    if isinstance(model, BaseEngine):
        engine = model
        model, guide = _engine_pair(engine, guide, guidance, device)
        device = engine.device
    if noise is not None:
        noise = arguments.tensor_of_noise(noise)
    given = {"model": model, "guide": guide}
    names = {role: _described(net, role) for role, net in given.items()}
    model, guide, device = _nets(model, guide, guidance, device, noise)
    if any(isinstance(net, (str, os.PathLike)) for net in pair):
        levels = noise_levels(model, guide)  # those that a file's net tells
    arguments.array_kind(array, device)
    arguments.nets_agree(model, guide)
    shape = arguments.sample_shape(shape, model, guide)

    # The images.
    if noise is not None:
        noise = arguments.given_noise(noise, shape, seeds, dtype)
        shape = shape or noise.shape[1:]
    elif shape is None:
        raise ValueError(
            "sample: shape must be given for a model that does not tell the shape of its samples, "
            "got None; pass shape=(C, H, W) or whatever stands after N, set the model's attribute "
            "sample_shape, or pass noise"
        )
    if noise is not None:
        num_images = len(noise)
    else:
        assert seeds is not None
        num_images = len(seeds)
    label_dim = arguments.label_dim(model, guide)
    classes = arguments.labels(class_labels, num_images, label_dim)
    if seeds is None and (churn.S_churn or (classes is None and label_dim)):
        needed = "churn is added" if churn.S_churn else "classes are drawn"
        raise ValueError(
            f"sample: seeds must be given beside noise where {needed}, got None; pass one seed per "
            "image" + ("" if churn.S_churn else ", or class_labels")
        )
    if compute_dtype is not None:
        _check_compute_dtype(compute_dtype, engine, model, guide if guidance != 1 else None)
    told = _conditioning(model, guide, engine, cond, guide_cond, num_images, device)
    encoder = arguments.decoder(model, raw, shape)
    if isinstance(encoder, LatentEncoder):
        encoder.load()
    if engine is None:
        for role, net in given.items():  # those that were loaded here have been looked at
            if (module := module_of(net)) is not None:
                arguments.finite_weights(names[role], module)

    return Request(
        model=model,
        guide=guide,
        names=names,
        engine=engine,
        guidance=guidance,
        steps=tuple(plan_steps(rho_schedule(*levels, dtype), guidance, interval, churn, device)),
        num_images=num_images,
        batch_size=batch_size,
        sample_shape=tuple(shape),
        seeds=seeds,
        noise=noise,
        classes=classes,
        label_dim=label_dim,
        cond=told,
        device=device,
        dtype=dtype,
        encoder=encoder,
        array=array,
        progress=progress,
        callback=callback,
        on_batch=on_batch,
        compute_dtype=compute_dtype,
    )


def _engine_pair(
    engine: BaseEngine, guide: Net | None, guidance: Weight, device: torch.device | None
) -> tuple[Denoiser, Denoiser | None]:
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
            f"sample: guidance must be 1 for an Engine without a guide, got {_shown(guidance)}; "
            "make Engine(model, guide)"
        )
    return engine.model, engine.guide


def _check_compute_dtype(
    compute_dtype: torch.dtype | str,
    engine: BaseEngine | None,
    model: Denoiser,
    guide: Denoiser | None,
) -> None:
    """Refuse a type that could not be used; which ones there are an engine knows itself."""
    if not isinstance(compute_dtype, torch.dtype) and compute_dtype != "auto":
        raise ValueError(
            f"sample: compute_dtype must be a torch.dtype or 'auto', got {compute_dtype!r}; "
            "torch.bfloat16 is one"
        )
    if engine is not None:
        raise ValueError(
            f"sample: compute_dtype must be left out for an Engine, got {compute_dtype!r}; it has "
            "a type of its own, Engine(model, guide, dtype)"
        )
    if reason := pair_unsupported_reason(model, guide):
        raise ValueError(
            "sample: compute_dtype must be left out for nets that are evaluated as they are, got "
            f"{compute_dtype!r}; for an engine, {reason}"
        )


def _conditioning(
    model: Denoiser,
    guide: Denoiser | None,
    engine: BaseEngine | None,
    cond: Mapping[str, Array] | None,
    guide_cond: Mapping[str, Array] | None,
    num_images: int,
    device: torch.device,
) -> dict[str, dict[str, Tensor]]:
    """What each net is told beside its labels; the guide gets the model's where it has no own."""
    given = {"model": ("cond", cond), "guide": ("guide_cond", guide_cond)}
    nets = {"model": model, "guide": guide}
    for role, (name, value) in given.items():
        if value is None:
            continue
        plain = isinstance(module_of(nets[role]), Precond)
        if nets[role] is None or plain or (engine is not None and not engine.takes_cond):
            owner = "no guide" if nets[role] is None else "a network that is told classes alone"
            raise ValueError(
                f"sample: {name} must be left out for {owner}, got {type(value).__name__}; it is "
                "for nets of other kinds"
            )
    found = {
        role: arguments.conditioning(name, value, num_images, device)
        for role, (name, value) in given.items()
    }
    if guide_cond is None and not isinstance(module_of(guide), Precond):
        found["guide"] = found["model"]
    return found


def _shown(guidance: Weight) -> str:
    return "a function of sigma" if callable(guidance) else f"{guidance:g}"


def _described(net: Net | None, role: str) -> str:
    return f"{role} {os.fspath(net)!r}" if isinstance(net, (str, os.PathLike)) else role


def _nets(
    model: Net,
    guide: Net | None,
    guidance: Weight,
    device: torch.device | None,
    noise: Tensor | None,
) -> tuple[Denoiser, Denoiser | None, torch.device]:
    """The two nets as callables on one device, which is returned too; loads names and paths."""
    if isinstance(model, (str, os.PathLike)) and guide is None and guidance != 1:
        guide = checkpoints.bundled_guide(model)
    elif isinstance(guide, str):
        guide = checkpoints.bundled_guide(guide) or guide
    if guide is None and guidance != 1:
        raise ValueError(
            f"sample: guide must be given where guidance is not 1, got None at guidance "
            f"{_shown(guidance)}; pass a worse version of the model, or unlabelled(model) for CFG"
        )
    nets: dict[str, Path | Denoiser | None] = {}
    for role, net in (("model", model), ("guide", guide)):
        if isinstance(net, (str, os.PathLike)):
            nets[role] = checkpoints.find(net, f"sample: {role}")
        elif (not callable(net) or isinstance(net, type)) and not (role == "guide" and net is None):
            raise TypeError(
                f"sample: {role} must be a name, a path or a callable (x, sigma, class_labels) -> "
                f"D, got {type(net).__name__}; load a checkpoint with autoguide_fast.load"
            )
        else:
            nets[role] = net

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
        named = any(isinstance(net, Path) for net in nets.values())
        place = "cuda" if named and torch.cuda.is_available() else "cpu"
        device = arguments.present_device(place)
    for role, place in found.items():
        if place is not None and place != device:
            raise ValueError(
                f"sample: {role} must be on {device}, got one on {place}; move it there with "
                f".to({str(device)!r}), or pass device={str(place)!r}"
            )
    model, guide = (
        checkpoints.load(net, device) if isinstance(net, Path) else net for net in nets.values()
    )
    assert model is not None
    return model, guide, device
