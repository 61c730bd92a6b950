"""What the engine is raced against: the textbook nets, eager and compiled, and the reference's."""

import copy
import functools
import importlib
import os
import sys
import time
import types
from dataclasses import dataclass

import pairs
import torch
from pinning import unpinned
from torch.utils.flop_counter import FlopCounterMode

from autoguide_fast.eager import EagerStepper
from autoguide_fast.sampler import heun, plan_steps
from autoguide_fast.schedules import rho_schedule
from autoguide_fast.textbook import TextbookPrecond


class Pair:
    """Two denoisers driven eagerly, with the face of `autoguide_fast.Engine`.

    Args:
        model, guide: callables `(x, sigma, class_labels) -> D`.
        dtype: the type in which they compute.
        how: the compiler's settings.
    """

    def __init__(self, model, guide, dtype=torch.float32, how=None):
        self.model, self.guide, self.dtype, self.how = model, guide, dtype, how

    def stepper(self, guidance, class_labels, steps):
        device = class_labels.device
        return EagerStepper(self.model, self.guide, guidance, class_labels, device)

    def sample(self, guidance, class_labels, noise, num_steps, raw):
        steps = plan_steps(rho_schedule(num_steps), guidance, device=noise.device)
        return heun(self.stepper(guidance, class_labels, steps), noise, steps)


def _bare(module):
    """A module as a bare callable, which the sampler feeds in the type of its state."""
    return lambda x, sigma, labels: module(x, sigma, labels).float()


def eager(model, guide):
    """Return the textbook pair in float32."""
    return Pair(_bare(TextbookPrecond(model)), _bare(TextbookPrecond(guide)))


@dataclass(frozen=True)
class Settings:
    """One way to call `torch.compile`; always a full graph of fixed shapes."""

    freezing: bool  # weights become constants, prepared and packed by the compiler
    mode: str | None
    channels_last: bool


SETTINGS = {
    "freezing": Settings(True, None, False),
    "freezing, max-autotune": Settings(True, "max-autotune", False),
    "max-autotune, channels-last": Settings(False, "max-autotune", True),
}


PRERACE_SECONDS = 2
# Up to this size of one evaluation, plain convolutions, which start faster than packed ones, may
# make up for weights that are prepared at every call; above, it would only be a long compilation.
SMALL_GFLOP = 1


def gflop(denoiser, x, sigma, labels):
    """Return the GFLOP of one evaluation: its products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        denoiser(x, sigma, labels)
    return counter.get_total_flops() / 1e9


def _with_code_of_its_own(function):
    """A copy of `function` whose compiled code dynamo keeps apart from that of other copies."""
    code = function.__code__.replace()
    return types.FunctionType(code, function.__globals__, closure=function.__closure__)


def _compiled(net, settings, dtype, x, sigma, labels):
    """Compile the textbook form of `net` for inputs like these, and return it as a callable."""
    if dtype != torch.float32:
        net = copy.deepcopy(net)
        for parameter in net.parameters():  # the Fourier features stay in float32
            parameter.data = parameter.data.to(dtype)
    module = TextbookPrecond(net)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    if settings.channels_last:
        module = module.to(memory_format=layout)  # type: ignore[call-overload]

    def forward(x, sigma, labels):
        return module(x, sigma, labels).float()

    # As many as there are nets and settings; the default stops after a few.
    torch._dynamo.config.recompile_limit = 64
    run = torch.compile(
        _with_code_of_its_own(forward), fullgraph=True, dynamic=False, mode=settings.mode
    )
    with unpinned(), torch._inductor.config.patch(freezing=settings.freezing):
        run(x.contiguous(memory_format=layout), sigma, labels)
    return lambda x, sigma, labels: run(x.contiguous(memory_format=layout), sigma, labels)


def _fastest(functions):
    """The key of the fastest of `functions`, from a few interleaved calls."""
    best = dict.fromkeys(functions, float("inf"))
    stop = time.perf_counter() + PRERACE_SECONDS
    while time.perf_counter() < stop or float("inf") in best.values():
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - start)
    return min(best, key=lambda name: best[name])


@functools.lru_cache(maxsize=1)
def compiled(net_name, batch, dtype, how=None):
    """Return the pair under `torch.compile`, at those settings that are fastest for the model.

    Args:
        net_name, batch: an entry of `pairs.NETS` and a batch size.
        dtype: float32, or bfloat16 for weights and activations of that type.
        how: a key of `SETTINGS` instead of the fastest.
    """
    torch._dynamo.reset()
    model, guide = pairs.pair(net_name)
    x, labels = pairs.inputs(model, batch)
    arguments = (x, torch.tensor(1.5), labels)
    small = gflop(eager(model, guide).model, *arguments) < SMALL_GFLOP
    made = {
        name: _compiled(model, settings, dtype, *arguments)
        for name, settings in SETTINGS.items()
        if how == name or (how is None and (settings.freezing or small))
    }
    if how is None:
        calls = {name: functools.partial(run, *arguments) for name, run in made.items()}
        how = _fastest(calls)
    guide = _compiled(guide, SETTINGS[how], dtype, *arguments)
    return Pair(made[how], guide, dtype, how)


def reference(path, model, guide):
    """Return the pair as nets of the reference implementation.

    Args:
        path: its checkout, which holds `training/` and `torch_utils/`.
        model, guide: the nets whose weights to use.
    """
    path = os.path.abspath(path)
    if not os.path.isfile(os.path.join(path, "training", "networks_edm2.py")):
        raise ValueError(
            f"reference: path must hold training/networks_edm2.py, got {path}; pass --reference "
            "the folder of a checkout of the EDM2 reference implementation"
        )
    if path not in sys.path:
        sys.path.insert(0, path)
    theirs = importlib.import_module("training.networks_edm2").Precond

    def load(net):
        with net.unet.out_gain.device:
            other = theirs(**net.config).eval()
        other.load_state_dict(net.state_dict())
        other.use_fp16 = net.use_fp16
        return _bare(other)

    return Pair(load(model), load(guide))
