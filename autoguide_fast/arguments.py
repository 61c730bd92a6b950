"""From what a user passes to `sample` to what the sampler needs, or one clear sentence."""

import importlib.util
import math
import operator

import numpy
import torch

from .guidance import Unlabelled

CALLER = "sample"


def number(name, value, rule, ok, remedy):
    """Return `value` as a float; TypeError or ValueError unless `ok(value)` holds."""
    try:
        as_float = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{CALLER}: {name} must be a number, got {value!r}; {remedy}") from None
    if math.isnan(as_float) or not ok(as_float):
        raise ValueError(f"{CALLER}: {name} must be {rule}, got {value}; {remedy}")
    return as_float


def count(name, value, remedy):
    """Return `value` as an int of at least 1."""
    try:
        as_int = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{CALLER}: {name} must be a whole number, got {value!r}; {remedy}"
        ) from None
    if as_int < 1:
        raise ValueError(f"{CALLER}: {name} must be at least 1, got {value}; {remedy}")
    return as_int


def noise_levels(num_steps, sigma_min, sigma_max, rho):
    """Check what makes the schedule; return the four values as plain numbers."""
    num_steps = count("num_steps", num_steps, "32 is the published choice")
    finite = math.isfinite
    low = number("sigma_min", sigma_min, "above 0", lambda v: v > 0 and finite(v), "0.002 is usual")
    high = number(
        "sigma_max", sigma_max, "above 0 and finite", lambda v: v > 0 and finite(v), "80 is usual"
    )
    if low >= high:
        raise ValueError(
            f"{CALLER}: sigma_min must be below sigma_max, got {low:g} and {high:g}; swap them or "
            "leave the defaults 0.002 and 80"
        )
    rho = number("rho", rho, "above 0 and finite", lambda v: v > 0 and finite(v), "7 is usual")
    return num_steps, low, high, rho


def churn_values(S_churn, S_min, S_max, S_noise):
    """Check the four churn parameters of EDM alg. 2; return them as floats."""

    def positive(value):
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


def guidance_interval(interval):
    """Check `interval`; return `(lo, hi)` as floats, or None."""
    if interval is None:
        return None
    try:
        low, high = interval
    except (TypeError, ValueError):
        raise TypeError(
            f"{CALLER}: interval must be a pair (lo, hi) of noise levels, got {interval!r}; pass "
            "None to guide at all of them"
        ) from None
    remedy = "guidance applies where lo < sigma <= hi"
    low = number("interval's lower end", low, ">= 0", lambda v: v >= 0, remedy)
    high = number("interval's upper end", high, "above lo", lambda v: v > low, remedy)
    return low, high


def state_dtype(dtype):
    """Check the type of the sampler's state."""
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{CALLER}: dtype must be torch.float32 or torch.float64, got {dtype!r}; it is that of "
            "the sampler's state, networks run in their own"
        )
    return dtype


def present_device(device, caller=CALLER):
    """Return `device` as a torch.device that is there, with its index."""
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"{caller}: device must be a device's name, got {device!r}; say 'cpu' or 'cuda'"
        ) from None
    try:
        if resolved.type == "meta":
            raise RuntimeError("holds no data")
        return torch.empty(0, device=resolved).device
    except (RuntimeError, AssertionError, NotImplementedError):
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        remedy = "pass device='cpu', or install a torch build for that device and its driver"
        if seen:
            remedy = f"use one of the {seen} CUDA devices"
        raise ValueError(
            f"{caller}: device must be present on this machine, got {str(device)!r}; {remedy}"
        ) from None


def image_seeds(seeds):
    """Return the seeds as a list of ints >= 0."""
    remedy = "seeds=range(16) makes sixteen images, seeds=[16] the one of seed 16"
    if seeds is None:
        raise ValueError(f"{CALLER}: seeds must be given where noise is not, got None; {remedy}")
    try:
        values = [operator.index(seed) for seed in seeds]
    except (TypeError, ValueError):
        shown = seeds if isinstance(seeds, (int, float, str)) else type(seeds).__name__
        raise TypeError(
            f"{CALLER}: seeds must be a sequence of whole numbers, got {shown!r}; {remedy}"
        ) from None
    negative = [seed for seed in values if seed < 0]
    if negative:
        raise ValueError(
            f"{CALLER}: seeds must be >= 0, got {negative[0]}; seeds count modulo 2^32"
        )
    return values


def as_tensor(value):
    """Return `value` as a tensor: NumPy's and, by DLPack, CuPy's and others' arrays, not copied."""
    if isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "__dlpack__") and not isinstance(value, numpy.ndarray):
        return torch.from_dlpack(value)
    return torch.as_tensor(value)


ARRAYS = ("torch", "numpy", "cupy")


def array_kind(kind, device):
    """Check `array` for results on `device` (None where that is not known yet)."""
    if kind not in ARRAYS:
        raise ValueError(
            f"{CALLER}: array must be one of {', '.join(ARRAYS)}, got {kind!r}; it is what the "
            "samples are returned as"
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


def to_array(x, kind):
    """Return tensor `x` as the kind of array asked for; memory is shared where it can be."""
    if kind == "numpy":
        return x.cpu().numpy()
    if kind == "cupy":
        import cupy

        return cupy.from_dlpack(x)
    return x


def tensor_of_noise(noise):
    """Return `noise` as a floating-point tensor, where it lies."""
    try:
        noise = as_tensor(noise)
    except (TypeError, ValueError, RuntimeError, BufferError):
        raise TypeError(
            f"{CALLER}: noise must be a tensor or an array, got {type(noise).__name__}; use "
            "torch.randn"
        ) from None
    if not noise.is_floating_point():
        raise TypeError(
            f"{CALLER}: noise must be of floating-point type, got {noise.dtype}; draw it with "
            "torch.randn"
        )
    return noise


def given_noise(noise, image_shape, seeds):
    """Check `noise` against the nets' image shape (or None) and the number of seeds (or None)."""
    if (image_shape is not None and tuple(noise.shape[1:]) != image_shape) or noise.ndim < 2:
        expected = "C, H, W" if image_shape is None else ", ".join(map(str, image_shape))
        raise ValueError(
            f"{CALLER}: noise must be [N, {expected}], got {list(noise.shape)}; it needs the "
            "shape of the model's images"
        )
    if not torch.isfinite(noise).all():
        raise ValueError(
            f"{CALLER}: noise must be finite, got NaN or infinity; draw it with torch.randn"
        )
    if seeds is not None and len(seeds) != len(noise):
        raise ValueError(
            f"{CALLER}: seeds must hold one seed per image of noise, got {len(seeds)} for "
            f"{len(noise)}; drop seeds or match their number"
        )
    return noise


def labels(class_labels, num_images, label_dim):
    """Return the labels as a CPU tensor with one row per image, or None.

    One-hot or soft float32 `[N, label_dim]` where `label_dim` is known; as given, one row per
    image, where it is not.
    """
    if class_labels is None:
        return None
    if label_dim == 0:
        raise ValueError(
            f"{CALLER}: class_labels must be None for a model without labels, got labels; drop them"
        )
    try:
        given = as_tensor(class_labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError, BufferError):
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
    if given.ndim < 2 and not whole and given.numel():
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
        if not torch.isfinite(given).all():
            raise ValueError(
                f"{CALLER}: class_labels must be finite, got NaN or infinity; pass one-hot rows"
            )
        return given.to(torch.float32)
    return one_hot(given, label_dim)


def one_hot(classes, label_dim):
    """Return float32 one-hot rows `[N, label_dim]` of int classes `[N]`, checking their range."""
    classes = classes.to(torch.int64)
    outside = classes[(classes < 0) | (classes >= label_dim)]
    if len(outside):
        raise ValueError(
            f"{CALLER}: class_labels must lie in 0..{label_dim - 1}, got {int(outside[0])}; the "
            f"model knows {label_dim} classes"
        )
    return torch.nn.functional.one_hot(classes, label_dim).to(torch.float32)


def nets_agree(model, guide):
    """Check that model and guide are made for the same images and labels."""
    for name in ("img_resolution", "img_channels"):
        ours, theirs = getattr(model, name, None), getattr(guide, name, None)
        if None not in (ours, theirs) and ours != theirs:
            raise ValueError(
                f"{CALLER}: guide must have the model's {name} {ours}, got {theirs}; a guide is a "
                "worse version of the same model, for the same data"
            )
    ours, theirs = getattr(model, "label_dim", None), getattr(guide, "label_dim", None)
    if ours is not None and theirs and ours != theirs:
        raise ValueError(
            f"{CALLER}: guide must have the model's label_dim {ours} or none, got {theirs}; "
            + (
                "use a guide without labels for a model without labels"
                if ours == 0
                else "train it on the same classes, or without labels"
            )
        )


def image_shape(*nets):
    """Shape (C, H, W) of the images that the first of `nets` that tells is made for, or None."""
    for net in nets:
        channels = getattr(net, "img_channels", None)
        resolution = getattr(net, "img_resolution", None)
        if channels is not None and resolution is not None:
            return channels, resolution, resolution
    return None


def module_of(net):
    """The module in `net`, or None for a bare callable."""
    net = net.net if isinstance(net, Unlabelled) else net
    return net if isinstance(net, torch.nn.Module) else None


def finite_weights(role, net):
    """Check that no weight of `net` is NaN or infinite."""
    module = module_of(net)
    if module is None:
        return
    tensors = [*module.named_parameters(), *module.named_buffers()]
    tensors = [(name, t) for name, t in tensors if t.is_floating_point()]
    finite = [torch.isfinite(t).all() for _, t in tensors]
    if finite and not torch.stack(finite).all():
        name = next(name for (name, _), ok in zip(tensors, finite, strict=True) if not ok)
        raise ValueError(
            f"{CALLER}: {role} must have finite weights, got NaN or infinity in {name}; load "
            "another checkpoint, or look at where its training diverged"
        )
