"""What images are made from and told, checked: seeds, noise, labels, conditioning, arrays."""

import importlib.util
import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import CALLER, MOST_IMAGES, number, present_device, shown
from .arrays import KINDS, Array, as_tensor


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
            f"{shown(seeds) if isinstance(seeds, (int, float, str)) else type(seeds).__name__}; "
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
            f"{caller}: seeds must be >= 0, got {shown(negative)}; seeds count modulo 2^32"
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
            f"{CALLER}: array must be one of {', '.join(KINDS)}, got {shown(kind)}; it is what "
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
            f"{CALLER}: class_labels must {bound}, got {shown(class_labels)}; count classes from 0"
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
                f"{shown(key)}; {remedy}"
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
