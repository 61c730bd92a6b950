"""Reference statistics of metrics, from files of the reference implementation and of NumPy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from .pickle_reader import Refused, shown
from .recorded_objects import opened
from .recorded_tensors import RecordedArray


def read_statistics(path: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
    """Reference statistics: `{metric: {"mu": [F], "sigma": [F, F]}}`, float64 NumPy arrays.

    Reads the reference implementation's `.pkl`, as data, and `.npz` files with `metric/mu` or one
    metric's `mu` and `sigma`, as ADM's evaluator has them; what else is in those is not read.

    Raises ValueError for a file that holds something else.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as file:
            found: dict[str, dict[str, np.ndarray]] = {}
            for key in file.files:  # images, features and labels may be there, too
                metric, _, name = key.rpartition("/")
                if name in ("mu", "sigma"):
                    found.setdefault(metric or "fid", {})[name] = file[key]
        if not found:
            raise ValueError(
                f"read_statistics: {path} must hold mu and sigma, got "
                f"{', '.join(map(shown, file.files[:5])) or 'nothing'}; make it anew"
            )
    else:
        with opened(path, "read_statistics") as contents:
            found = _statistics(contents)
    for metric, values in found.items():
        mu, sigma = values.get("mu"), values.get("sigma")
        if mu is None or sigma is None or mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise ValueError(
                f"read_statistics: {path} must hold mu [F] and sigma [F, F] of each metric, got "
                f"other shapes for {shown(metric)}; make it anew"
            )
    return {
        metric: {k: np.array(values[k], np.float64) for k in ("mu", "sigma")}
        for metric, values in found.items()
    }


def _statistics(contents: Any) -> dict[str, dict[str, np.ndarray]]:
    if type(contents) is not dict or not contents:
        raise Refused(f"{shown(contents)} instead of metrics")
    if {"mu", "sigma"} <= contents.keys():
        contents = {"fid": contents}
    found: dict[str, dict[str, np.ndarray]] = {}
    arrays: dict[RecordedArray, np.ndarray] = {}
    for metric, values in contents.items():
        if type(values) is not dict or any(
            type(values.get(k)) is not RecordedArray for k in ("mu", "sigma")
        ):
            raise Refused(f"{shown(values)} instead of mu and sigma of {shown(metric)}")
        for name in ("mu", "sigma"):
            array = values[name]
            if array not in arrays:  # which may be those of another metric, too
                arrays[array] = array.read()
            found.setdefault(metric, {})[name] = arrays[array]
    return found
