"""From what a user passes to `sample` to what the sampler needs, or one clear sentence."""

import functools
import importlib.util
import itertools
import math
import numbers
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .arrays import KINDS, Array, as_tensor

Flag = TypeVar("Flag", bound=bool | None)

CALLER = "sample"

# What one call takes at most: results of more would hardly fit into memory, and more steps change
# the samples by less than rounding does.
MOST_IMAGES = 10_000_000
MOST_STEPS = 10_000
# Noise levels of which a network can take the square in float32.
LEVELS = (1e-18, 1e18)


def number(
    name: str, value: Any, rule: str, ok: Callable[[float], bool], remedy: str, caller: str = CALLER
) -> float:
    """Return `value` as a float; TypeError or ValueError unless `ok(value)` holds."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        as_float = float(value.item() if hasattr(value, "item") else value)
    except OverflowError:
        as_float = math.inf
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{caller}: {name} must be a number, got {_shown(value)}; {remedy}"
        ) from None
    if math.isnan(as_float) or not ok(as_float):
        raise ValueError(f"{caller}: {name} must be {rule}, got {_shown(value)}; {remedy}")
    return as_float


def count(name: str, value: Any, remedy: str, most: int | None = None, caller: str = CALLER) -> int:
    """Return `value` as an int from 1 to `most`."""
    try:
        as_int = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{caller}: {name} must be a whole number, got {_shown(value)}; {remedy}"
        ) from None
    if as_int < 1 or (most is not None and as_int > most):
        bound = "at least 1" if as_int < 1 else f"at most {most}"
        raise ValueError(f"{caller}: {name} must be {bound}, got {_shown(as_int)}; {remedy}")
    return as_int


def flag(name: str, value: Flag, allowed: Sequence[Flag], remedy: str) -> Flag:
    """Return `value`, one of `allowed`, which are True, False and perhaps None."""
    if (value is None or isinstance(value, bool)) and value in allowed:
        return value
    raise TypeError(
        f"{CALLER}: {name} must be {' or '.join(map(str, allowed))}, got {_shown(value)}; {remedy}"
    )


def function_or_none(name: str, function: object, given: str) -> None:
    """Check that `function` can be called, where there is one; `given` says with what."""
    if function is not None and not callable(function):
        raise TypeError(
            f"{CALLER}: {name} must be callable, got {type(function).__name__}; it is called "
            f"with {given}"
        )


def _shown(value: object) -> str:
    """`value` as a message can show it: one short line."""
    try:
        text = repr(value) if isinstance(value, str) else str(value)
    except ValueError:  # whole numbers of thousands of digits
        text = "\n"
    return type(value).__name__ if "\n" in text or len(text) > 60 else text


def noise_levels(
    num_steps: int,
    sigma_min: float,
    sigma_max: float,
    rho: float,
    dtype: torch.dtype = torch.float64,
    caller: str = CALLER,
) -> tuple[int, float, float, float]:
    """Check what makes the schedule of a state of type `dtype`; return four plain numbers."""
    num_steps = count("num_steps", num_steps, "32 is the published choice", MOST_STEPS, caller)
    least, most = LEVELS
    rule = f"above 0, from {least:g} to {most:g}"

    def level(value: float) -> bool:
        return least <= value <= most

    low = number("sigma_min", sigma_min, rule, level, "0.002 is usual", caller)
    high = number("sigma_max", sigma_max, rule, level, "80 is usual", caller)
    rounded = torch.tensor([low, high], dtype=dtype, device="cpu")
    if not rounded[0] < rounded[1]:
        kind = "" if low >= high else f" in {dtype}"
        raise ValueError(
            f"{caller}: sigma_min must be below sigma_max{kind}, got {low:g} and {high:g}; swap "
            "them or leave the defaults 0.002 and 80"
        )
    rho = number("rho", rho, "above 0 and finite", lambda v: 0 < v < math.inf, "7 is usual", caller)
    return num_steps, low, high, rho


def trained_levels(
    sigma_min: float | None, sigma_max: float | None, nets: Mapping[str, object]
) -> list[float]:
    """Return the two levels, those of the model (the first net) for None, or else 0.002 and 80.

    Warns of levels given that a net says it was not trained for.
    """
    levels = {"sigma_min": (sigma_min, 0.002, -1), "sigma_max": (sigma_max, 80.0, 1)}
    chosen = []
    for name, (value, usual, sign) in levels.items():
        own = [_trained_level(net, name) for net in nets.values()]
        if value is None:
            value = usual if own[0] is None else own[0]
        chosen.append(value)
        for role, level in zip(nets, own, strict=True):
            is_number = isinstance(value, numbers.Real)
            if level is not None and is_number and sign * (value - level) > 1e-3 * level:
                warnings.warn(
                    f"{CALLER}: {name} {value:g} lies beyond what the {role} was trained for, "
                    f"{level:g}; its output there is a guess",
                    stacklevel=5,
                )
    return chosen


def _trained_level(net: object, name: str) -> float | None:
    """The level `name` that a net says it was trained for, or None."""
    level = getattr(net, name, None)
    as_float = float(level) if isinstance(level, numbers.Real) else math.nan
    return as_float if 0 < as_float < math.inf else None


def churn_values(
    S_churn: float, S_min: float, S_max: float, S_noise: float
) -> tuple[float, float, float, float]:
    """Check the four churn parameters of EDM alg. 2; return them as floats."""

    def positive(value: float) -> bool:
        return value >= 0 and math.isfinite(value)

    values = (
        number("S_churn", S_churn, "finite and >= 0", positive, "0 samples without churn"),
        number("S_min", S_min, "finite and >= 0", positive, "0 sets no lower bound"),
        number("S_max", S_max, ">= 0", lambda v: v >= 0, "math.inf sets no upper bound"),
        number("S_noise", S_noise, "finite and >= 0", positive, "1 is the exact amount"),
    )
    if values[1] > values[2]:
        raise ValueError(
            f"{CALLER}: S_min must not exceed S_max, got {values[1]:g} and {values[2]:g}; swap them"
        )
    return values


def weight(
    guidance: float | Callable[[float], float], caller: str = CALLER, argument: str = "guidance"
) -> float | Callable[[float], float]:
    """Check the guidance weight; return it as a float, or as a function of sigma that checks it."""
    remedy = "1 is no guidance, 1.5 a usual start"
    if not callable(guidance):
        return number(argument, guidance, "finite", math.isfinite, remedy, caller)

    @functools.lru_cache(1 << 16)  # one weight for a level, whatever asks and how often
    def at(sigma: float) -> float:
        name = f"{argument} at sigma {sigma:.4g}"
        return number(name, guidance(sigma), "finite", math.isfinite, remedy, caller)

    return at


def guidance_interval(
    interval: tuple[float, float] | None, caller: str = CALLER
) -> tuple[float, float] | None:
    """Check `interval`; return `(lo, hi)` as floats, or None."""
    if interval is None:
        return None
    try:
        if isinstance(interval, (str, bytes, dict, set)):
            raise TypeError
        low, high = interval
    except (TypeError, ValueError):
        raise TypeError(
            f"{caller}: interval must be a pair (lo, hi) of noise levels, got {_shown(interval)}; "
            "pass None to guide at all of them"
        ) from None
    remedy = "guidance applies where lo < sigma <= hi"
    low = number("interval's lower end", low, ">= 0", lambda v: v >= 0, remedy, caller)
    high = number("interval's upper end", high, "above lo", lambda v: v > low, remedy, caller)
    return low, high


def state_dtype(dtype: torch.dtype, caller: str = CALLER) -> None:
    """Check the type of the sampler's state."""
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{caller}: dtype must be torch.float32 or torch.float64, got {_shown(dtype)}; it is "
            "that of the sampler's state, networks run in their own"
        )


def present_device(
    device: torch.device | str, caller: str = CALLER, argument: str = "device"
) -> torch.device:
    """Return `device` as a torch.device that is there, with its index."""
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"{caller}: {argument} must be a device's name, got {device!r}; say 'cpu' or 'cuda'"
        ) from None
    try:
        if resolved.type == "meta":
            raise RuntimeError("holds no data")
        return torch.empty(0, device=resolved).device
    except (RuntimeError, AssertionError, ImportError):
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        remedy = "pass device='cpu', or install a torch build for that device and its driver"
        if seen:
            remedy = f"use one of the {seen} CUDA devices"
        raise ValueError(
            f"{caller}: {argument} must be present on this machine, got {str(device)!r}; {remedy}"
        ) from None


def image_seeds(seeds: Iterable[int] | Array | None, caller: str = CALLER) -> Sequence[int]:
    """Return the seeds as a list or range of ints >= 0."""
    remedy = "seeds=range(16) makes sixteen images, seeds=[16] the one of seed 16"
    if seeds is None:
        raise ValueError(f"{caller}: seeds must be given where noise is not, got None; {remedy}")
    try:
        values = _whole_numbers(seeds, MOST_IMAGES + 1)
    except (TypeError, ValueError, IndexError):
        raise TypeError(
            f"{caller}: seeds must be a sequence of whole numbers, got "
            f"{_shown(seeds) if isinstance(seeds, (int, float, str)) else type(seeds).__name__}; "
            f"{remedy}"
        ) from None
    if len(values) > MOST_IMAGES:
        raise ValueError(
            f"{caller}: seeds must be at most {MOST_IMAGES} at a time, got more; sample them in "
            "several calls"
        )
    ends = (values[:1], values[-1:]) if isinstance(values, range) else (values,)
    negative = next((seed for seed in itertools.chain(*ends) if seed < 0), None)
    if negative is not None:
        raise ValueError(
            f"{caller}: seeds must be >= 0, got {_shown(negative)}; seeds count modulo 2^32"
        )
    return values


def _whole_numbers(values: Any, most: int) -> list[int] | range:
    """The first `most` of what a sequence or iterator yields, as ints; a range stays one."""
    if isinstance(values, range):
        return values[:most]
    if isinstance(values, (str, bytes, bytearray, set, frozenset, dict)):  # no numbers, or no order
        raise TypeError
    if hasattr(values, "tolist"):
        values = values[:most].tolist()
    found = list(itertools.islice(iter(values), most))
    if any(isinstance(value, bool) for value in found):  # a mask, by the look of it
        raise TypeError
    return [operator.index(value) for value in found]


def array_kind(kind: str, device: torch.device | None) -> None:
    """Check `array` for results on `device` (None where that is not known yet)."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(
            f"{CALLER}: array must be one of {', '.join(KINDS)}, got {_shown(kind)}; it is what "
            "the samples are returned as"
        )
    if kind != "cupy" or device is None:
        return
    if device.type != "cuda":
        raise ValueError(
            f"{CALLER}: array must be 'torch' or 'numpy' on {device}, got 'cupy'; pass "
            "device='cuda'"
        )
    if importlib.util.find_spec("cupy") is None:
        raise ValueError(
            f"{CALLER}: array must be 'torch' or 'numpy' without CuPy, got 'cupy'; run "
            "`pip install cupy-cuda13x` (or 12x, as torch's CUDA)"
        )


def tensor_of_noise(noise: Array) -> Tensor:
    """Return `noise` as a floating-point tensor, where it lies."""
    try:
        tensor = as_tensor(noise)
    except (TypeError, OverflowError):
        raise TypeError(
            f"{CALLER}: noise must be a dense tensor or array of numbers, got "
            f"{type(noise).__name__}; use torch.randn"
        ) from None
    if not tensor.is_floating_point():
        raise TypeError(
            f"{CALLER}: noise must be of floating-point type, got {tensor.dtype}; draw it with "
            "torch.randn"
        )
    present_device(tensor.device, argument="noise's device")
    return tensor


def given_noise(
    noise: Tensor,
    shape: tuple[int, ...] | None,
    seeds: Sequence[int] | None,
    dtype: torch.dtype,
) -> Tensor:
    """Check `noise` against the nets' sample shape (or None) and the number of seeds (or None)."""
    if (shape is not None and tuple(noise.shape[1:]) != shape) or noise.ndim < 2:
        expected = "*shape" if shape is None else ", ".join(map(str, shape))
        raise ValueError(
            f"{CALLER}: noise must be [N, {expected}], got {list(noise.shape)}; it needs the "
            "shape of the model's samples"
        )
    if not torch.isfinite(noise.to(dtype)).all():
        raise ValueError(
            f"{CALLER}: noise must be finite in {dtype}, got NaN, infinity or more; draw it with "
            "torch.randn"
        )
    if seeds is not None and len(seeds) != len(noise):
        raise ValueError(
            f"{CALLER}: seeds must hold one seed per image of noise, got {len(seeds)} for "
            f"{len(noise)}; drop seeds or match their number"
        )
    return noise


def labels(class_labels: Any, num_images: int, label_dim: int | None) -> Tensor | None:
    """Return the labels as a CPU tensor with one entry per image, or None.

    Classes int64 `[N]` or soft rows float32 `[N, label_dim]` where `label_dim` is known; as given,
    one row per image, where it is not.
    """
    if class_labels is None:
        return None
    if label_dim == 0:
        raise ValueError(
            f"{CALLER}: class_labels must be None for a model without labels, got labels; drop them"
        )
    try:
        given = as_tensor(class_labels).cpu()
    except OverflowError:
        bound = "fit into 64 bits" if label_dim is None else f"lie in 0..{label_dim - 1}"
        raise ValueError(
            f"{CALLER}: class_labels must {bound}, got {_shown(class_labels)}; count classes from 0"
        ) from None
    except (TypeError, RuntimeError):
        raise TypeError(
            f"{CALLER}: class_labels must be integers or a tensor, got "
            f"{type(class_labels).__name__}; pass one class per image, or one for all"
        ) from None
    whole = not given.is_floating_point() and not given.is_complex() and given.dtype != torch.bool
    if given.ndim == 0 and (whole or label_dim is None):
        given = given.expand(num_images)
    if label_dim is None:
        if len(given) != num_images:
            raise ValueError(
                f"{CALLER}: class_labels must have one row per image ({num_images}), got "
                f"{list(given.shape)}; repeat or cut them"
            )
        return given
    if given.is_complex() or (given.ndim < 2 and not whole and given.numel()):
        raise TypeError(
            f"{CALLER}: class_labels must be whole numbers, got {given.dtype}; pass class indices, "
            f"or one-hot rows [{num_images}, {label_dim}]"
        )
    if list(given.shape) not in ([num_images], [num_images, label_dim]):
        raise ValueError(
            f"{CALLER}: class_labels must be one class, [{num_images}] classes or "
            f"[{num_images}, {label_dim}] one-hot rows for {num_images} images, got "
            f"{list(given.shape)}; give every image its class"
        )
    if given.ndim == 2:
        rows = given.to(torch.float32)
        if not torch.isfinite(rows).all():
            raise ValueError(
                f"{CALLER}: class_labels must be finite, got NaN or infinity; pass one-hot rows"
            )
        return rows
    classes = given.to(torch.int64)
    outside = classes[(classes < 0) | (classes >= label_dim)]
    if len(outside):
        raise ValueError(
            f"{CALLER}: class_labels must lie in 0..{label_dim - 1}, got {int(outside[0])}; the "
            f"model knows {label_dim} classes"
        )
    return classes


def conditioning(
    name: str, cond: Mapping[str, Any] | None, num_images: int, device: torch.device
) -> dict[str, Tensor]:
    """Return the conditioning tensors called `name`, `[N or 1, ...]`, on `device`."""
    if cond is None:
        return {}
    remedy = "name each tensor as the net takes it, such as encoder_hidden_states"
    if not isinstance(cond, Mapping):
        raise TypeError(
            f"{CALLER}: {name} must be a dict of tensors, got {type(cond).__name__}; {remedy}"
        )
    tensors = {}
    for key, value in cond.items():
        if not isinstance(key, str) or key in ("x", "sigma", "class_labels"):
            raise ValueError(
                f"{CALLER}: {name} must be named otherwise than x, sigma and class_labels, got "
                f"{_shown(key)}; {remedy}"
            )
        try:
            tensor = as_tensor(value)
        except (TypeError, OverflowError):
            raise TypeError(
                f"{CALLER}: {name}[{key!r}] must be a tensor or array, got {type(value).__name__}; "
                "give the net what else it wants in a function around it"
            ) from None
        if tensor.ndim == 0 or len(tensor) not in (1, num_images):
            raise ValueError(
                f"{CALLER}: {name}[{key!r}] must have a first dimension of 1 or of the images, "
                f"{num_images}, got {list(tensor.shape)}; give every image its own, or one for all"
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(
                f"{CALLER}: {name}[{key!r}] must be finite, got NaN or infinity; look at what made "
                "it"
            )
        tensors[key] = tensor.to(device)
    return tensors


def one_hot(classes: Tensor, label_dim: int) -> Tensor:
    """Return float32 one-hot rows `[N, label_dim]` of classes int64 `[N]`."""
    return torch.nn.functional.one_hot(classes, label_dim).to(torch.float32)


def nets_agree(model: object, guide: object, role: str = "guide") -> None:
    """Check that model and guide are made for the same images and labels."""
    for name in ("img_resolution", "img_channels"):
        ours, theirs = getattr(model, name, None), getattr(guide, name, None)
        if None not in (ours, theirs) and ours != theirs:
            raise ValueError(
                f"{CALLER}: {role} must have the model's {name} {ours}, got {theirs}; a guide is a "
                "worse version of the same model, for the same data"
            )
    shapes = _shape_of(model), _shape_of(guide)
    if None not in shapes and shapes[0] != shapes[1]:
        raise ValueError(
            f"{CALLER}: {role} must have the model's sample_shape {shapes[0]}, got {shapes[1]}; a "
            "guide is a worse version of the same model, for the same data"
        )
    ours, theirs = getattr(model, "label_dim", None), getattr(guide, "label_dim", None)
    if ours is not None and theirs and ours != theirs:
        raise ValueError(
            f"{CALLER}: {role} must have the model's label_dim {ours} or none, got {theirs}; "
            + (
                "use a guide without labels for a model without labels"
                if ours == 0
                else "train it on the same classes, or without labels"
            )
        )


def label_dim(model: object, *guides: object) -> int | None:
    """Number of classes that model and guides are told, or None where none of them says."""
    found = getattr(model, "label_dim", None)
    for guide in guides:
        if found is None:
            found = getattr(guide, "label_dim", None) or None
    if found is None:
        return None
    if isinstance(found, numbers.Integral) and int(found) >= 0:
        return int(found)
    raise ValueError(
        f"{CALLER}: label_dim must be the number of classes, got {_shown(found)}; set the model's "
        "attribute to 0 for a model without labels"
    )


def sample_shape(shape: Sequence[int] | None, *nets: object) -> tuple[int, ...] | None:
    """Shape of one sample: `shape`, or what the first of `nets` that tells is made for, or None.

    A net tells by `sample_shape`, any shape, or by `img_channels` and `img_resolution`.
    """
    remedy = "give the sizes that stand after N, such as (3, 64, 64), (2, 128) or (2,)"
    given = None if shape is None else _sizes("shape", shape, remedy)
    known = next((found for net in nets if (found := _shape_of(net)) is not None), None)
    if given is not None and known is not None and given != known:
        raise ValueError(
            f"{CALLER}: shape must be {list(known)} for this model, got {list(given)}; leave it out"
        )
    return known if given is None else given


def _shape_of(net: object) -> tuple[int, ...] | None:
    """Shape of the samples that a net says it is made for, or None."""
    remedy = "set the model's attribute to one number, or pass a callable without it"
    shape = getattr(net, "sample_shape", None)
    if shape is not None:
        return _sizes("the model's sample_shape", shape, "set it to the sizes that stand after N")
    channels = getattr(net, "img_channels", None)
    resolution = getattr(net, "img_resolution", None)
    if channels is None or resolution is None:
        return None
    channels = count("img_channels", channels, remedy)
    resolution = count("img_resolution", resolution, remedy)
    return channels, resolution, resolution


def _sizes(name: str, shape: Any, remedy: str) -> tuple[int, ...]:
    """`shape` as a tuple of at least one whole number >= 1."""
    try:
        if isinstance(shape, (str, bytes, dict, set)):
            raise TypeError
        sizes = [operator.index(size) for size in shape]
    except TypeError:
        raise TypeError(
            f"{CALLER}: {name} must be a sequence of whole numbers, got {_shown(shape)}; {remedy}"
        ) from None
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"{CALLER}: {name} must be one or more numbers >= 1, got {_shown(shape)}; {remedy}"
        )
    return tuple(sizes)


def decoder(model: object, raw: bool | None, shape: tuple[int, ...] | None) -> Any:
    """What decodes the model's samples of `shape` (C, H, W), or None where they stay raw.

    The attribute `encoder` of a model counts where it has a method `decode`: networks of other
    libraries may call a part of theirs so.
    """
    encoder = getattr(model, "encoder", None)
    if not callable(getattr(encoder, "decode", None)):
        encoder = None
    if encoder is None and raw is False:
        raise ValueError(
            f"{CALLER}: raw must be True or None for a model without an encoder, got False; set "
            "model.encoder, for instance to autoguide_fast.encoders.PixelEncoder()"
        )
    if encoder is None or raw:
        return None
    channels = getattr(encoder, "channels", None)
    if channels is not None and shape is not None and channels != shape[0]:
        raise ValueError(
            f"{CALLER}: model must have the {channels} channels that its encoder decodes, got "
            f"{shape[0]}; pass raw=True, or set model.encoder to another, or to None"
        )
    return encoder


def finite_weights(role: str, module: torch.nn.Module) -> None:
    """Check that no weight of `module` is NaN or infinite."""
    name = not_finite([*module.named_parameters(), *module.named_buffers()])
    if name is not None:
        raise ValueError(
            f"{CALLER}: {role} must have finite weights, got NaN or infinity in {name}; load "
            "another checkpoint, or look at where its training diverged"
        )


def not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first name of `named`, pairs of name and tensor, whose tensor has NaN or infinity."""
    wide = [
        (name, t if t.itemsize > 1 else t.float())
        for name, t in named
        if t.is_floating_point() and not t.is_meta
    ]
    if not wide:
        return None
    # A sum is finite only if all of it is, and takes half the time of the exact question.
    if torch.stack([t.sum().double() for _, t in wide]).isfinite().all():
        return None
    return next((name for name, t in wide if not torch.isfinite(t).all()), None)


def start_level(sigma_start: float | None, init: object, sigma_max: float) -> float:
    """The noise level to begin at: `sigma_start` for images to begin from, or else `sigma_max`."""
    if sigma_start is None:
        return sigma_max
    if init is None:
        raise ValueError(
            f"{CALLER}: init must be given beside sigma_start, got None; lower sigma_max to begin "
            "at less noise"
        )
    remedy = "less noise keeps more of init"
    return number(
        "sigma_start", sigma_start, "above 0 and finite", lambda v: 0 < v < math.inf, remedy
    )
