"""`ModuleEngine`: a pair of modules of any kind, compiled or recorded, in one batch if possible."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..eager import EagerNets, EagerStepper, input_dtype
from ..guidance import Cond, Denoiser, Unlabelled, Weight, bare, module_of, unlabelled
from ..guided_stepper import Nets
from ..sampler import Step, Stepper
from ..unet import Drop
from .base_engine import BaseEngine, Guides, guide_list, guide_roles
from .gpu_engine import RECORDINGS, settings
from .gpu_stepper import LONGEST
from .graphs import CudaGraphs, lacks_memory
from .module_loop import ModuleLoop
from .profile import Profile


class ModuleEngine(BaseEngine):
    """A pair of modules that are no `Precond`s.

    On the CPU they run under `torch.compile`. On a CUDA device whole samplings are recorded as
    graphs, with model and guide on two streams; modules that no graph can hold run as they are,
    with a warning. **Recording has not run on a GPU yet.** The state, the guided combination and
    the steps are the fused operators'. A guide that is the model itself without its label or under
    other conditioning (classifier-free guidance) is evaluated with it as one batch of twice the
    size. The modules are not copied: the engine holds them, and later changes of weights reach it.

    Args:
        model, guide: modules `(x, sigma, class_labels) -> D`, on one device; `guide` may be None,
            or several.
        dtype: torch.float32 or "auto": they run in their own type.
        recorder: what records, by default the `CudaGraphs` of a CUDA device.
    """

    takes_cond = True

    def __init__(
        self,
        model: Denoiser,
        guide: Guides = None,
        dtype: torch.dtype | str = torch.float32,
        recorder: CudaGraphs | None = None,
    ) -> None:
        if dtype not in (torch.float32, "auto"):
            raise ValueError(
                f"Engine: dtype must be left out for modules that are no Precond, got {dtype!r}; "
                "convert the modules, which run in their own type"
            )
        self.device = _device("model", model)
        guides = guide_list(guide)
        for role, net in zip(guide_roles(len(guides)), guides, strict=True):
            place = _device(role, net)
            if place != self.device:
                raise ValueError(
                    f"Engine: {role} must be on the model's device {self.device}, got one on "
                    f"{place}; move it with .to()"
                )
        self.dtype = input_dtype(model, torch.float32)
        self.model, self.guides, self.recorder = model, tuple(guides), recorder
        if self.device.type == "cuda" and recorder is None:
            self.recorder = CudaGraphs(self.device)
        if self.recorder is None:
            self.model = _compiled(model)
            self.guides = tuple(_compiled(net, self.model) for net in guides)
        self._loops: OrderedDict[tuple, ModuleLoop] = OrderedDict()

    def stepper(
        self,
        guidance: Weight,
        class_labels: Tensor | None,
        steps: Sequence[Step],
        cond: Mapping[str, Cond] | None = None,
    ) -> Stepper:
        """See `BaseEngine.stepper`."""
        return ModuleStepper(self, guidance, class_labels, steps, cond or {})

    def nets(
        self, class_labels: Tensor | None, sigmas: Sequence[float], cond: Mapping[str, Cond] | None
    ) -> Nets:
        """See `BaseEngine.nets`; evaluated one by one, without a recording."""
        return ModuleNets(self.by_role, cond or {})

    def close(self) -> None:
        """Forget what was compiled or recorded; it may run again, and is then made anew."""
        for net in map(bare, self.by_role.values()):
            if isinstance(net, CompiledModule):
                net.restart()
        if self.recorder is not None:
            with self.recorder.exclusive():
                self.recorder.synchronize()
                self._loops.clear()
                self.recorder.release_memory()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_loops"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._loops = OrderedDict()

    def loop(self, key: tuple, make: Callable[[CudaGraphs], ModuleLoop]) -> ModuleLoop | None:
        """The recording `key`, made now or kept; None where the modules cannot be recorded.

        To be called inside the recorder's `exclusive`.
        """
        if self.recorder is None:
            return None
        key = (*key, *(place for net in self.by_role.values() for place in _memory(net)))
        if key not in self._loops:
            try:
                with self.recorder.private_stream():
                    made = make(self.recorder)
            except RuntimeError as error:
                if lacks_memory(error):
                    raise
                warnings.warn(
                    "Engine: the modules run as they are, which is slower, since no CUDA graph can "
                    f"hold them ({' '.join(str(error).split())[:200]})",
                    stacklevel=2,
                )
                self.recorder = None
                return None
            while len(self._loops) >= RECORDINGS:
                self.recorder.synchronize()
                self._loops.popitem(last=False)
            self._loops[key] = made
        self._loops.move_to_end(key)
        return self._loops[key]

    def peak_memory(self, batch: int, threads: int | None = None) -> int:
        """Not known beforehand for modules of any kind."""
        raise ValueError(
            "Engine.peak_memory: the nets must be Preconds, got modules of another kind, whose "
            "memory is not planned; measure a run"
        )

    def profile(self, batch: int = 1, repeats: int = 20) -> Profile:
        """Not taken apart for modules of any kind."""
        raise ValueError(
            "Engine.profile: the nets must be Preconds, got modules of another kind; use "
            "torch.profiler around a run"
        )


class CompiledModule(torch.nn.Module):
    """A module under `torch.compile`; as it is, with a warning, where that fails.

    Has the attributes of the module.
    """

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net
        self.restart()

    def restart(self) -> None:
        """Begin anew: compile when next called."""
        # In a list, or torch would make it a layer.
        self._run = [torch.compile(self.net)]

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        if self._run[0] is not self.net:
            try:
                return self._run[0](*arguments, **named)
            except (torch._dynamo.exc.TorchDynamoException, _inductor_error()) as error:
                reason = " ".join(str(error).split())
                warnings.warn(
                    f"Engine: {type(self.net).__name__} runs as it is, which is slower, since "
                    f"torch.compile failed on it ({reason[:200]})",
                    stacklevel=2,
                )
                self._run = [self.net]
        return self.net(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "net":
                raise
            return getattr(self.net, name)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.restart()


class ModuleNets(EagerNets):
    """A model and its guides, model and one guide as one batch where they are the same net.

    Args:
        nets, cond: as for `EagerNets`.
    """

    def __init__(self, nets: Mapping[str, Denoiser], cond: Mapping[str, Cond]) -> None:
        super().__init__(nets, cond)
        # While recording: how two nets are run that are no one batch.
        self.run_both: Callable[[Callable[[], None], Callable[[], None]], None] | None = None

    def outputs(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None,
        roles: Sequence[str],
        rows: Tensor | None = None,
        embedding_noise: Tensor | None = None,
        drop: Drop | None = None,
    ) -> list[Tensor]:
        """See `guided_stepper.Nets.outputs`."""
        if len(roles) != 2 or sigma.ndim or rows is not None:
            return super().outputs(x, sigma, class_labels, roles, rows, embedding_noise, drop)
        if not self._are_one_net(roles, class_labels):
            if self.run_both is None:
                return super().outputs(x, sigma, class_labels, roles)
            results = {role: torch.empty_like(x) for role in roles}

            def into(role: str) -> None:
                results[role].copy_(self.output(role, x, sigma, class_labels))

            self.run_both(lambda: into(roles[0]), lambda: into(roles[1]))
            return list(results.values())
        cond = {
            name: torch.cat([_rows(self.cond[role][name], len(x)) for role in roles])
            for name in self.cond.get(roles[0], {})
        }
        labels = self._both_labels(roles, class_labels, len(x))
        both = self.evaluated(roles[0], torch.cat([x, x]), sigma, labels, cond)
        return list(both.chunk(2))

    def _are_one_net(self, roles: Sequence[str], class_labels: Tensor | None) -> bool:
        model, guide = (self.nets[role] for role in roles)
        if bare(model) is not bare(guide) or isinstance(model, Unlabelled):
            return False
        labels = [self.labels_of(role, class_labels) for role in roles]
        differ = labels[0] is not None and labels[1] is None
        if differ and not getattr(model, "zero_label_is_none", False):
            return False
        own = getattr(model, "cond", None) or {}
        if any(isinstance(value, Tensor) and len(value) != 1 for value in own.values()):
            return False  # rows of a batch, which would have to be twice as many
        told = [
            {
                name: (value.shape[1:], value.dtype)
                for name, value in self.cond.get(role, {}).items()
            }
            for role in roles
        ]
        return told[0] == told[1]

    def _both_labels(
        self, roles: Sequence[str], class_labels: Tensor | None, count: int
    ) -> Tensor | None:
        labels, others = (self.labels_of(role, class_labels) for role in roles)
        if labels is None:
            return None
        others = torch.zeros_like(labels) if others is None else others
        return torch.cat([_rows(labels, count), _rows(others, count)])


class ModuleStepper(EagerStepper):
    """Evaluates model and guide by `ModuleNets`, then the half step; or replays a recording.

    Args:
        engine: whose modules these are.
        guidance: the weight w, a number or a function of the noise level.
        class_labels: `[N or 1, label_dim]`, or None.
        steps: those that will be run.
        cond: conditioning of each net by its role.
    """

    def __init__(
        self,
        engine: ModuleEngine,
        guidance: Weight,
        class_labels: Tensor | None,
        steps: Sequence[Step],
        cond: Mapping[str, Cond],
    ) -> None:
        guide = engine.guides[0] if engine.guides else None
        super().__init__(engine.model, guide, guidance, class_labels, engine.device, cond)
        self.modules = self.nets = ModuleNets(self.nets.nets, cond)
        self.engine, self.steps, self.cond = engine, steps, cond
        self.weights: Tensor | None = None  # while recording: a buffer of them

    def whole(self, noise: Tensor, randn: Callable[[], Tensor] | None = None) -> Tensor | None:
        """See `sampler.Stepper.whole`; from a recording, where there is a recorder."""
        engine, recorder = self.engine, self.engine.recorder
        if recorder is None or len(self.steps) > LONGEST:
            return None
        labels, cond = self.class_labels, self.cond
        churned = [step for step in self.steps if step.churn_std]
        if churned and randn is None:
            return None

        def make(recorder: CudaGraphs) -> ModuleLoop:
            def over(
                labels: Tensor | None, cond: Mapping[str, Cond], weights: Tensor
            ) -> ModuleStepper:
                stepper = ModuleStepper(engine, self.guidance, labels, self.steps, cond)
                stepper.modules.run_both, stepper.weights = recorder.run_concurrently, weights
                return stepper

            empty = [torch.zeros_like(noise) for _ in churned]
            given = self.steps, self.guidance, noise, empty, labels, cond
            return ModuleLoop(recorder, over, *given)

        key = (
            tuple((s.guided, s.guided_next, s.churn_std > 0) for s in self.steps),
            *map(_kind, (noise, labels)),
            *((role, name, _kind(v)) for role, c in cond.items() for name, v in c.items()),
            *settings(),
            torch.is_autocast_enabled(noise.device.type),
            torch.get_autocast_dtype(noise.device.type),
        )
        for role, net in self.nets.nets.items():
            told = self.nets.labels_of(role, labels)
            if told is not None and hasattr(net, "check_labels"):
                net.check_labels(told)
        with recorder.exclusive(), torch.inference_mode(False), torch.no_grad():
            loop = engine.loop(key, make)
            if loop is None:
                return None
            drawn = [] if randn is None else [randn() for _ in churned]
            loop.load(self.steps, self.guidance, noise, drawn, labels, cond)
            loop.run()
            return loop.result.clone()

    def _weight(self, step: Step, second: bool) -> Tensor:
        if self.weights is None:
            return super()._weight(step, second)
        return self.weights[2 * step.index + second]


def _kind(value: Tensor | None) -> tuple | None:
    """What has to be the same for one recording to serve."""
    return None if value is None else (value.shape, value.dtype)


def _memory(net: Denoiser | None) -> list[int]:
    """Where a module's tensors lie, conditioning of its own included, which a recording reads."""
    module = module_of(net)
    if module is None:
        return []
    own = getattr(module, "cond", None) or {}
    told = [value for value in own.values() if isinstance(value, Tensor)]
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers(), *told)]


def _rows(value: Tensor, count: int) -> Tensor:
    """One row of `value` for each of `count` images."""
    return value.expand(count, *value.shape[1:])


def _device(role: str, net: Denoiser) -> torch.device:
    """The device of a module; ValueError for what an engine cannot run."""
    module = module_of(net)
    if module is None:
        raise ValueError(
            f"Engine: {role} must be a module, got {type(net).__name__}; sample runs any callable, "
            "without an engine"
        )
    devices = {p.device for p in module.parameters()} or {torch.device("cpu")}
    if len(devices) > 1:
        raise ValueError(
            f"Engine: {role} must be on one device, got {sorted(map(str, devices))}; move it with "
            ".to()"
        )
    return devices.pop()


def _compiled(net: Denoiser, like: Denoiser | None = None) -> Denoiser:
    """`net` compiled, its `unlabelled` kept; what `like` holds is not compiled twice."""
    known = bare(like)
    inner = known if known is not None and known.net is bare(net) else CompiledModule(bare(net))
    return unlabelled(inner) if isinstance(net, Unlabelled) else inner


def _inductor_error() -> type[Exception]:
    from torch._inductor.exc import InductorError

    return InductorError
