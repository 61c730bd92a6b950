"""From what a user passes to `sample` to what the sampler needs, or one clear sentence."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

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
            f"{caller}: {name} must be a number, got {shown(value)}; {remedy}"
        ) from None
    if math.isnan(as_float) or not ok(as_float):
        raise ValueError(f"{caller}: {name} must be {rule}, got {shown(value)}; {remedy}")
    return as_float


def count(name: str, value: Any, remedy: str, most: int | None = None, caller: str = CALLER) -> int:
    """Return `value` as an int from 1 to `most`."""
    try:
        as_int = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{caller}: {name} must be a whole number, got {shown(value)}; {remedy}"
        ) from None
    if as_int < 1 or (most is not None and as_int > most):
        bound = "at least 1" if as_int < 1 else f"at most {most}"
        raise ValueError(f"{caller}: {name} must be {bound}, got {shown(as_int)}; {remedy}")
    return as_int


def flag(name: str, value: Flag, allowed: Sequence[Flag], remedy: str) -> Flag:
    """Return `value`, one of `allowed`, which are True, False and perhaps None."""
    if (value is None or isinstance(value, bool)) and value in allowed:
        return value
    raise TypeError(
        f"{CALLER}: {name} must be {' or '.join(map(str, allowed))}, got {shown(value)}; {remedy}"
    )


def function_or_none(name: str, function: object, given: str) -> None:
    """Check that `function` can be called, where there is one; `given` says with what."""
    if function is not None and not callable(function):
        raise TypeError(
            f"{CALLER}: {name} must be callable, got {type(function).__name__}; it is called "
            f"with {given}"
        )


def shown(value: object) -> str:
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
            f"{caller}: interval must be a pair (lo, hi) of noise levels, got {shown(interval)}; "
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
            f"{caller}: dtype must be torch.float32 or torch.float64, got {shown(dtype)}; it is "
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
