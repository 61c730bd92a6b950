"""The engines that `sample` keeps: the last few, known by what they depend on."""

import json
import threading
from collections import OrderedDict

import torch

from ..guidance import Unlabelled
from .engine import Engine
from .prepared import device_of

LIMIT = 4  # engines; each holds about what its nets' parameters take

_engines = OrderedDict()
_lock = threading.Lock()


def cached(model, guide=None):
    """The engine of a pair, made now or kept from an earlier call.

    It computes in float32, or as networks with `use_fp16` do on a CUDA device: in float16 if both
    have it. Engines are known by configuration, place and content of the nets, so that a changed
    weight, however it was changed, makes another engine, and a checkpoint that is loaded again does
    not.
    """
    half = device_of(model).type == "cuda" and all(net.use_fp16 for net in (model, guide) if net)
    dtype = torch.float16 if half else torch.float32
    key = _fingerprint(model), _fingerprint(guide)
    with _lock:
        if key in _engines:
            _engines.move_to_end(key)
            return _engines[key]
    engine = Engine(model, guide, dtype)
    with _lock:
        _engines[key] = engine
        while len(_engines) > LIMIT:
            _engines.popitem(last=False)
    return engine


def clear():
    """Forget all kept engines; their memory is freed once nobody else holds them."""
    with _lock:
        _engines.clear()


def _fingerprint(net):
    if net is None:
        return None
    unlabelled = isinstance(net, Unlabelled)
    if unlabelled:
        net = net.net
    with torch.inference_mode():
        # As signed integers, which all devices stack.
        hashes = [torch.hash_tensor(t).view(torch.int64) for t in net.state_dict().values()]
        hashes = torch.stack(hashes)
    return unlabelled, json.dumps(net.config), str(device_of(net)), tuple(hashes.tolist())
