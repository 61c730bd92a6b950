"""The engines that `sample` keeps: the last few, known by all that they depend on."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

import torch

from .. import as_built, cpu
from ..guidance import Denoiser, bare, unwrapped
from ..kept_choices import enabled
from .base_engine import BaseEngine, Guides, guide_list
from .digest import digest
from .make import make_engine
from .prepared import PreparedDenoiser, device_of

LIMIT = 4  # engines; each holds about what its nets' parameters take

_engines: OrderedDict[Hashable, BaseEngine] = OrderedDict()
_lock = threading.Lock()  # held for moments
_making = threading.Lock()  # held while an engine is made, so that none is made twice


def cached(
    model: Denoiser,
    guide: Guides = None,
    dtype: torch.dtype | str | None = None,
) -> BaseEngine:
    """The engine of a model and its guides, made now or kept from an earlier call.

    `dtype` is as for `Engine`. None: float32, or as networks with `use_fp16` compute on a CUDA
    device: float16 if all have it. Engines are known by options, place and content of the nets, so
    that a changed weight, however it was changed, makes another engine, and a checkpoint that is
    loaded again does not. Their `encoder` is None: a pair's is known by who asks.
    """
    guides = guide_list(guide)
    nets = [bare(net) for net in (model, *guides)]
    half = device_of(model).type == "cuda" and all(net.use_fp16 for net in nets)
    if dtype is None:
        dtype = torch.float16 if half else torch.float32
    key = _key(model, guide, dtype)
    if engine := _kept(key):
        return engine
    with _making:
        if engine := _kept(key):
            return engine
        engine = make_engine(model, guides, dtype)
        for net in (engine.model, *engine.guides):
            if isinstance(net, PreparedDenoiser):
                net.encoder = None
        if _key(model, guide, dtype) == key:  # otherwise the weights changed meanwhile
            with _lock:
                _engines[key] = engine
                while len(_engines) > LIMIT:
                    _engines.popitem(last=False)
    return engine


def clear() -> None:
    """Forget all kept engines; their memory is freed once nobody else holds them."""
    with _lock:
        _engines.clear()


def _kept(key: Hashable) -> BaseEngine | None:
    with _lock:
        if key in _engines:
            _engines.move_to_end(key)
        return _engines.get(key)


def _key(model: Denoiser, guide: Guides, dtype: torch.dtype | str) -> Hashable:
    return dtype, cpu.isa(), enabled(), _fingerprint(model), *map(_fingerprint, guide_list(guide))


def _fingerprint(net: Denoiser) -> Hashable:
    """What a prepared net is made of, and nothing else is (`prepared.PreparedDenoiser`)."""
    plain, unlabelled = unwrapped(net)
    config, tensors = as_built.contents(plain)
    return unlabelled, str(device_of(plain)), config, digest(tensors)
