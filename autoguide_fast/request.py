"""Everything that `sample` is asked for, checked before any work: `checked` makes a `Request`."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import arguments, checkpoints, image_arguments, net_arguments
from .arrays import Array
from .encoders import Decoder, LatentEncoder
from .engine import BaseEngine, unsupported_reason_of
from .guidance import (
    Denoiser,
    Disturbance,
    Guidance,
    Weight,
    guide_of_model,
    guide_roles,
    is_of_model,
    module_of,
    undisturbed_net,
)
from .guidance.saved import SavedWeights, weights_of
from .guidance_input import guidance_input, guidance_range
from .guidance_request import (
    GuidanceLike,
    Interval,
    listed_one,
    needs_guide,
    only_interval,
    requested_guidance,
)
from .networks import Precond
from .sampler import Step, plan_steps
from .samplers import Sampler, find_sampler
from .schedules import Churn, Schedule, given_levels, schedule_levels
from .start import Start, starting

DEFAULT_BATCH_SIZE = 64

# What `sample` takes for a model or a guide, for guidance, seeds and labels.
Net = str | os.PathLike | Denoiser
Seeds = Iterable[int] | Array
Labels = int | Sequence[int] | Sequence[Sequence[float]] | Array


@dataclass(frozen=True, eq=False)
class Request:
    """One call of `sample`, checked: what will be run, and where.

    Attributes:
        nets: what will be evaluated, by role: "model", then those of the guides.
        names: what messages call them, by role.
        engine: the one whose nets these are, or None for nets that come by themselves.
        guidance: for one guide at most, the weight w, a number or a function of the noise level;
            otherwise what combines.
        sampler: what integrates, or None for Heun's method.
        start: what sampling begins from besides noise, or None.
        disturbances: of the nets whose inputs are changed, by role.
        interval: where a weight applies; None everywhere, or where `guidance` knows it.
        steps: all steps, on `device`.
        num_images, batch_size: how many, and how many at a time.
        sample_shape: what stands after N, (C, H, W) for images.
        seeds: one per image, or None where `noise` and `classes` say all.
        noise: that of all images, where it lies, or None to draw it from the seeds.
        classes: labels of all images on the CPU, as of `image_arguments.labels`.
        label_dim: number of classes, None where neither net tells.
        cond: what else the nets are told about all images, on `device`: by role, then by name.
        device, dtype: of the state.
        encoder: what decodes samples, or None for raw ones.
        array, progress, callback, on_batch, compute_dtype: as for `sample`.
        handed_out: the `batches` of `sample`.
    """

    nets: dict[str, Denoiser]
    names: dict[str, str]
    engine: BaseEngine | None
    guidance: Weight | Guidance
    sampler: Sampler | None
    start: Start | None
    disturbances: dict[str, Disturbance]
    interval: Interval | None
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
    handed_out: Iterable[range] | None

    @property
    def model(self) -> Denoiser:
        """The model."""
        return self.nets["model"]

    @property
    def guides(self) -> list[Denoiser]:
        """The guides."""
        return list(self.nets.values())[1:]

    @property
    def num_batches(self) -> int | None:
        """How many batches there are, None where that is not known before."""
        return None if self.handed_out is not None else -(-self.num_images // self.batch_size)

    @property
    def batches(self) -> Iterator[range]:
        """Which images each batch has."""
        count, size = self.num_images, self.batch_size
        if self.handed_out is None:
            yield from (range(start, min(start + size, count)) for start in range(0, count, size))
            return
        for batch in self.handed_out:
            within = isinstance(batch, range) and batch.step == 1
            if not within or not 0 <= batch.start < batch.stop <= count:
                raise ValueError(
                    f"sample: batches must be ranges of the {count} images, got {batch!r}; pass "
                    "such as [range(0, 64)]"
                )
            yield batch


def checked(
    model: Net | BaseEngine,
    guide: Net | Sequence[Net] | None,
    guidance: GuidanceLike | None,
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
    interval: Interval | Sequence[Interval | None] | None,
    batch_size: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
    progress: bool,
    callback: Callable | None,
    raw: bool | None,
    array: str,
    on_batch: Callable | None,
    cond: Mapping[str, Array] | None,
    guide_cond: Mapping[str, Array] | Sequence[Mapping[str, Array]] | None,
    compute_dtype: torch.dtype | str | None,
    sampler: str | Sampler,
    schedule: Schedule,
    sigmas: Sequence[float] | Array | None,
    init: Array | None,
    sigma_start: float | None,
    mask: Array | None,
    batches: Iterable[range] | None,
) -> Request:
    """The `Request` for these arguments of `sample`, documented there; networks are loaded.

    Raises:
        TypeError, ValueError: bad input.
    """
    # What each argument says by itself.
    arguments.state_dtype(dtype)
    engine = model if isinstance(model, BaseEngine) else None
    named, disturbances = _by_role(model, guide), {}
    if engine is not None:
        disturbances = dict(engine.disturbances)
    for role, net in named.items():
        named[role], disturbance = undisturbed_net(net)
        if disturbance is not None:
            disturbances[role] = disturbance

    def noise_levels(nets: Mapping[str, object]) -> Tensor:
        if sigmas is not None:
            return given_levels(sigmas, dtype)
        low, high = net_arguments.trained_levels(sigma_min, sigma_max, nets)
        high = image_arguments.start_level(sigma_start, init, high)
        limits = arguments.noise_levels(num_steps, low, high, rho, dtype)
        return schedule_levels(schedule, *limits, dtype)

    levels = noise_levels(named)
    churn = Churn(*arguments.churn_values(S_churn, S_min, S_max, S_noise))
    integrate = find_sampler(sampler)
    if integrate is not None and churn.S_churn:
        raise ValueError(
            f"sample: S_churn must be 0 for a sampler other than 'heun', got {S_churn:g}; those "
            "with noise of their own say so by their names"
        )
    if guidance is None:
        guidance = checkpoints.default_guidance(model)
    if batch_size is None:
        batch_size = DEFAULT_BATCH_SIZE
    else:
        batch_size = arguments.count("batch_size", batch_size, "leave it out for up to 64")
    raw = arguments.flag("raw", raw, (True, False, None), "None decodes where there is an encoder")
    progress = arguments.flag("progress", progress, (True, False), "True shows a bar")
    if seeds is not None or noise is None:
        seeds = image_arguments.image_seeds(seeds)
    arguments.function_or_none("callback", callback, "a StepInfo after each step")
    arguments.function_or_none("on_batch", on_batch, "indices and images after each batch")
    if batches is not None and on_batch is None:
        raise ValueError(
            "sample: on_batch must be given with batches, got None; it takes the images, of which "
            "not all need be sampled"
        )
    if device is not None:
        device = arguments.present_device(device)
    image_arguments.array_kind(array, device)

    # The networks, and what they say.
    learnt: tuple[float, ...] = ()
    as_input = None
    if guide is None and needs_guide(guidance):
        learnt = guidance_range(model)
    if learnt:  # one net for two: the weight is its input, and no guide runs
        as_input, guidance = guidance_input(guidance, interval, learnt), 1.0
    if engine is not None:
        _check_engine(engine, guide, device)
        device = engine.device
    elif guide is None and needs_guide(guidance) and (own := _own_guide(model)):
        named["guide"] = own
    if isinstance(guide, (list, tuple)) and len(guide) == 1:  # its weight may be listed
        guidance, interval = listed_one(guidance), listed_one(interval)
    saved = None
    if isinstance(guidance, (str, os.PathLike)):
        saved = _saved(guidance, model)
        functions = saved.functions()
        guidance = functions if len(functions) > 1 else functions[0]
        if engine is not None:
            model_print, *guide_prints = engine.fingerprints
            saved.check_fingerprints(model_print, guide_prints)
        elif len(named) - 1 != len(functions):
            saved.check(model, list(named.values())[1:])
    combined = requested_guidance(guidance, interval, list(named)[1:], engine)
    if noise is not None:
        noise = image_arguments.tensor_of_noise(noise)
    names = {role: _described(net, role) for role, net in named.items()}
    nets, device = _nets(named, device, noise)
    for role, text in named.items():
        if is_of_model(text):
            nets[role], told_else = undisturbed_net(guide_of_model(text, nets["model"]))
            if told_else is not None:
                disturbances[role] = told_else
    image_arguments.array_kind(array, device)
    guides = list(nets.values())[1:]
    if saved is not None and engine is None:
        saved.check(nets["model"], guides)
    for role, net in list(nets.items())[1:]:
        net_arguments.nets_agree(nets["model"], net, role)
    if any(isinstance(net, (str, os.PathLike)) for net in named.values()):
        levels = noise_levels(nets)  # those that a file's net tells
    shape = net_arguments.sample_shape(shape, *nets.values())

    # The images.
    if noise is not None:
        noise = image_arguments.given_noise(noise, shape, seeds, dtype)
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
    label_dim = net_arguments.label_dim(*nets.values())
    classes = image_arguments.labels(class_labels, num_images, label_dim)
    if seeds is None and (churn.S_churn or (classes is None and label_dim)):
        needed = "churn is added" if churn.S_churn else "classes are drawn"
        raise ValueError(
            f"sample: seeds must be given beside noise where {needed}, got None; pass one seed per "
            "image" + ("" if churn.S_churn else ", or class_labels")
        )
    run = guides if needs_guide(combined) else []
    if compute_dtype is not None:
        _check_compute_dtype(compute_dtype, engine, nets["model"], run, disturbances)
    told = _conditioning(nets, engine, cond, guide_cond, num_images, device)
    if as_input is not None:
        if len(as_input) not in (1, num_images):
            raise ValueError(
                f"sample: guidance must be one weight for each of {num_images} images, got "
                f"{len(as_input)}; pass as many, or one number"
            )
        told["model"] = {**told["model"], "guidance": as_input.to(device, torch.float32)}
    encoder = net_arguments.decoder(nets["model"], raw, shape)
    if isinstance(encoder, LatentEncoder):
        encoder.load()
    begin = starting(init, mask, nets["model"], num_images, tuple(shape), dtype, device)
    if engine is None:
        for role, net in named.items():  # those that were loaded here have been looked at
            if (module := module_of(net)) is not None:
                net_arguments.finite_weights(names[role], module)

    weight = 1.0 if isinstance(combined, Guidance) else combined
    one_interval = None if isinstance(combined, Guidance) else only_interval(interval)
    return Request(
        nets=nets,
        names=names,
        engine=engine,
        guidance=combined,
        sampler=integrate,
        start=begin,
        disturbances=disturbances,
        interval=one_interval,
        steps=tuple(plan_steps(levels, weight, one_interval, churn, device)),
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
        handed_out=batches,
    )


def _by_role(model: Net | BaseEngine, guide: Net | Sequence[Net] | None) -> dict[str, Net]:
    """Model and guides as they were given; those of an engine are its own."""
    if isinstance(model, BaseEngine):
        return dict(model.by_role)
    guides: list[Net] = []
    if guide is not None:
        guides = list(guide) if isinstance(guide, (list, tuple)) else [guide]  # type: ignore[list-item]
    return {"model": model} | dict(zip(guide_roles(len(guides)), guides, strict=True))


def _own_guide(model: Net | BaseEngine) -> str | None:
    """The guide that a model by name brings."""
    return checkpoints.bundled_guide(model) if isinstance(model, (str, os.PathLike)) else None


def _saved(guidance: str | os.PathLike, model: Net | BaseEngine) -> SavedWeights:
    """The weights that a file says, or that lie beside the model's."""
    file = None
    if isinstance(model, (str, os.PathLike)):
        file = checkpoints.find(model, "sample: model")
    return weights_of(guidance, file)


def _check_engine(
    engine: BaseEngine, guide: Net | Sequence[Net] | None, device: torch.device | None
) -> None:
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


def _check_compute_dtype(
    compute_dtype: torch.dtype | str,
    engine: BaseEngine | None,
    model: Denoiser,
    guides: Sequence[Denoiser],
    disturbances: Mapping[str, Disturbance],
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
    if reason := unsupported_reason_of(model, guides, disturbances):
        raise ValueError(
            "sample: compute_dtype must be left out for nets that are evaluated as they are, got "
            f"{compute_dtype!r}; for an engine, {reason}"
        )


def _conditioning(
    nets: Mapping[str, Denoiser],
    engine: BaseEngine | None,
    cond: Mapping[str, Array] | None,
    guide_cond: Mapping[str, Array] | Sequence[Mapping[str, Array]] | None,
    num_images: int,
    device: torch.device,
) -> dict[str, dict[str, Tensor]]:
    """What each net is told beside its labels; a guide gets the model's where it has no own."""
    roles = list(nets)[1:] or ["guide"]
    several = isinstance(guide_cond, (list, tuple)) and len(nets) > 2
    for_guides: list[Any] = list(guide_cond) if several else [guide_cond] * len(roles)  # type: ignore
    if len(for_guides) != len(roles):
        raise ValueError(
            f"sample: guide_cond must be one for all or for each of {len(roles)} guides, got "
            f"{len(for_guides)}; pass as many"
        )
    given: dict[str, tuple[str, Any]] = {"model": ("cond", cond)} | {
        role: ("guide_cond", each) for role, each in zip(roles, for_guides, strict=True)
    }
    for role, (name, value) in given.items():
        if value is None:
            continue
        net = nets.get(role)
        plain = isinstance(module_of(net), Precond)
        if net is None or plain or (engine is not None and not engine.takes_cond):
            owner = "no guide" if net is None else "a network that is told classes alone"
            raise ValueError(
                f"sample: {name} must be left out for {owner}, got {type(value).__name__}; it is "
                "for nets of other kinds"
            )
    found = {
        role: image_arguments.conditioning(name, value, num_images, device)
        for role, (name, value) in given.items()
    }
    for role in roles:
        if given[role][1] is None and not isinstance(module_of(nets.get(role)), Precond):
            found[role] = found["model"]
    return found


def _described(net: Net | None, role: str) -> str:
    return f"{role} {os.fspath(net)!r}" if isinstance(net, (str, os.PathLike)) else role


def _nets(
    named: Mapping[str, Net], device: torch.device | None, noise: Tensor | None
) -> tuple[dict[str, Denoiser], torch.device]:
    """The nets as callables on one device, which is returned too; loads names and paths."""
    nets: dict[str, Path | Denoiser] = {}
    for role, net in named.items():
        if is_of_model(net) and role != "model":
            nets[role] = nets["model"]  # made of it when it is loaded
        elif isinstance(net, (str, os.PathLike)):
            alone = role != "model" and isinstance(net, str)  # a bundled net means its guide there
            net = (checkpoints.bundled_guide(net) if alone else None) or net
            nets[role] = checkpoints.find(net, f"sample: {role}")
        elif not callable(net) or isinstance(net, type):
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
        device = next((place for place in found.values() if place is not None), None)
        if device is not None:
            arguments.present_device(device, argument="the networks' device")
    if device is None and noise is not None:
        device = noise.device
    if device is None:
        stored = any(isinstance(net, Path) for net in nets.values())
        place = "cuda" if stored and torch.cuda.is_available() else "cpu"
        device = arguments.present_device(place)
    for role, place in found.items():
        if place is not None and place != device:
            raise ValueError(
                f"sample: {role} must be on {device}, got one on {place}; move it there with "
                f".to({str(device)!r}), or pass device={str(place)!r}"
            )
    loaded: dict[str, Denoiser] = {}
    for role, found_net in nets.items():
        if role != "model" and is_of_model(named[role]):
            loaded[role] = loaded["model"]
        else:
            loaded[role] = (
                checkpoints.load(found_net, device) if isinstance(found_net, Path) else found_net
            )
    return loaded, device
