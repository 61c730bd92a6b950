"""The golden arrays: numbers read off the reference implementation (float32, on a CPU)."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

from autoguide_fast.networks import Precond

DATA = Path(__file__).parent / "data"


@cache
def golden(name):
    """Return the arrays of `tests/data/<name>.npz` as a dict, with `config` decoded."""
    with np.load(DATA / f"{name}.npz") as file:
        arrays = dict(file)
    config = json.loads(str(arrays.pop("config_json")))
    return {k: torch.from_numpy(v) for k, v in arrays.items()} | {"config": config}


def state_dict(arrays, prefix):
    """Return the weights stored under `prefix/`, under the network's own names."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def golden_net(name, prefix="weight/", **options):
    """Return the network of `name`, in evaluation mode, with the golden weights loaded strictly."""
    arrays = golden(name)
    config = arrays["config"].get(prefix.rstrip("/"), arrays["config"])
    net = Precond(**config, **options)
    net.load_state_dict(state_dict(arrays, prefix), strict=True)
    return net.eval().requires_grad_(False)
