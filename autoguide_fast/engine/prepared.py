"""One network made ready: its plan, its packed weights, its embedding."""

from __future__ import annotations

import abc
import contextlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import as_built
from .._C import Storage
from ..guidance import Denoiser, Unlabelled, bare, unwrapped
from ..modes import watching
from ..networks import Precond
from ..preconditioning import denoised, magnitude
from .embedding import Embedding
from .lower import Lowered, lower

STORAGE_TYPES = {torch.float32: Storage.F32, torch.bfloat16: Storage.BF16, torch.int8: Storage.U8}

# Images that a thread takes through the plan together, and bytes of their maps: with fewer, the
# weights are read again too often, which costs more than maps that leave the cache.
_CHUNK_IMAGES, _CHUNK_BYTES = 4, 24 << 20


class Arena:
    """The memory in which plans run, one at a time; grows to what the largest needs and stays.

    Where the system has no such block, teams of threads take half as many images at a time from
    then on, and so forth, down to one.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.block = _bytes(0)
        self.images = _CHUNK_IMAGES  # that a team takes together at most

    def reserve(self, nets: Sequence[PreparedNet], images: int, threads: int) -> Tensor:
        """A block in which any of `nets` runs such a batch; to be called with the lock held."""
        while True:
            size = max(net.arena_bytes(images, threads) for net in nets)
            if self.block.numel() >= size:
                return self.block
            self.block = _bytes(0)  # before its successor is there
            try:
                self.block = _bytes(size)
            except (RuntimeError, MemoryError) as error:
                self._fallback(size, threads, error)

    def _fallback(self, size: int, threads: int, error: Exception) -> None:
        if self.images == 1:
            raise MemoryError(
                f"Engine: {size / 2**20:.1f} MiB must be free for one image a team of threads, got "
                f"less with {threads} threads; free memory, or see torch.set_num_threads"
            ) from error
        if self.images == _CHUNK_IMAGES:
            warnings.warn(
                f"Engine: {size / 2**20:.1f} MiB for feature maps are not free; going on with "
                "fewer images at a time, which is slower",
                stacklevel=2,
            )
        self.images //= 2

    def release(self) -> None:
        """Release its memory; to be called with the lock held."""
        self.block = _bytes(0)

    def __reduce__(self) -> tuple[type[Arena], tuple[()]]:
        return Arena, ()  # a copy has memory of its own


def _bytes(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.uint8, device="cpu")


class PreparedDenoiser(abc.ABC):
    """A denoiser made ready to run: what it keeps of a `Precond` beside its weights.

    A net is its options and tensors, see `unsupported_reason`: prepared nets are made of `source`,
    which is built of these alone, so that no attribute, hook or method of a user's net reaches
    them, and what `cache` compares is all that they can depend on.
    """

    def __init__(self, net: Denoiser) -> None:
        plain, self.unlabelled = unwrapped(net)
        self.encoder: Any = plain.encoder
        options = plain.config
        self.img_resolution, self.img_channels = options["img_resolution"], options["img_channels"]
        self.label_dim = 0 if self.unlabelled else options["label_dim"]
        self.sigma_data = float(options["sigma_data"])
        self.guidance_range = tuple(options.get("guidance_range", ()))

    @staticmethod
    def source(net: Denoiser) -> Precond:
        """The `Precond` to prepare for `net`: another one, with the same options and tensors."""
        return as_built.rebuilt(*as_built.contents(bare(net)))

    @abc.abstractmethod
    def __call__(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Denoise `x [N, C, H, W]` at `sigma` (0-dim or [N]), as `Precond.forward` does.

        Returns float32 `[N, C, H, W]`, which requires no gradient. Not differentiable: raises
        ValueError where a derivative is asked for.
        """


class PreparedNet(PreparedDenoiser):
    """A denoiser `(x, sigma, class_labels) -> D` that a plan runs; a snapshot of a `Precond`.

    `shared` is one of the same net, whose plan and weights it then uses.
    """

    embedding: Embedding
    lowered: Lowered

    def __init__(
        self, net: Denoiser, dtype: torch.dtype, arena: Arena, shared: PreparedNet | None = None
    ) -> None:
        super().__init__(net)
        self.dtype = dtype
        if shared is not None:
            self.embedding, self.lowered = shared.embedding, shared.lowered
        else:
            with undisturbed("cpu"):
                source = self.source(net)
                self.embedding = Embedding(source)
                self.lowered = lower(source, STORAGE_TYPES[dtype])
        self.arena = arena

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed weights."""
        return self.lowered.weights.nbytes + self.embedding.bytes

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """See `PreparedDenoiser.__call__`."""
        check_call(x, sigma, class_labels, guidance)
        with torch.no_grad(), no_autocast("cpu"):
            x = x.to(torch.float32)
            sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
            labels = None if self.unlabelled else class_labels
            rows = self.embedding.of_images(sigma, labels, None, guidance)
            sigma = sigma.reshape(-1, 1, 1, 1)
            raw = torch.empty_like(x, memory_format=torch.contiguous_format)
            self.evaluate(x / magnitude(sigma, self.sigma_data), 1.0, rows, raw)
            return denoised(x, raw, sigma, self.sigma_data)

    def modulations(
        self, levels: Tensor, class_labels: Tensor | None, guidance: Tensor | None = None
    ) -> Tensor:
        """The blocks' modulations for these levels and labels, `[levels, N or 1, modulations]`.

        `guidance` holds weights `[N or 1]` of a net that takes them, or is None.
        """
        labels = None if self.unlabelled else class_labels
        with undisturbed("cpu"):
            return self.embedding.modulations(levels, labels, guidance)

    def modulations_of_images(
        self,
        sigma: Tensor,
        class_labels: Tensor | None,
        noise: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The blocks' modulations of images: see `Embedding.of_images`."""
        labels = None if self.unlabelled else class_labels
        with undisturbed("cpu"):
            return self.embedding.of_images(sigma, labels, noise, guidance)

    def evaluate(
        self,
        x: Tensor,
        c_in: float,
        modulations: Tensor,
        result: Tensor,
        times: Tensor | None = None,
        threads: int | None = None,
    ) -> None:
        """Write `F(c_in x)` into `result`, float32 `[N, C, H, W]`.

        Args:
            x: `[N, C, H, W]` float32 or float64.
            c_in: what `x` is multiplied with.
            modulations: `[N or 1, modulations]`, one noise level's of what `modulations` returns.
            result: contiguous.
            times: float64, one for each instruction; grows by its seconds.
            threads: how many run it; None: torch's.
        """
        threads = threads or torch.get_num_threads()
        with self.arena.lock, torch.inference_mode():
            torch.ops.autoguide_fast.evaluate.default(
                self.lowered.plan.number,
                x,
                c_in,
                self.lowered.weights,
                modulations,
                self.arena.reserve([self], len(x), threads),
                result,
                threads,
                self.chunk(len(x), threads),
                times,
            )

    def arena_bytes(self, images: int, threads: int) -> int:
        """Bytes of the arena for a batch: bounded, because teams take a few images at a time."""
        chunk = self.chunk(images, threads)
        return self.lowered.plan.arena_bytes(images, threads, chunk)

    def chunk(self, images: int, threads: int) -> int:
        """Images that a team of threads takes through the plan together."""
        share = -(-images // threads) if images >= threads else images
        return max(1, min(share, self.arena.images, _CHUNK_BYTES // self.lowered.plan.image_bytes))


def no_autocast(device_type: str) -> torch.autocast:
    """The time in which torch computes in the types that it is given."""
    return torch.autocast(device_type, enabled=False)


@contextlib.contextmanager
def undisturbed(device_type: str) -> Iterator[None]:
    """`no_autocast`, and neither are gradients recorded."""
    with no_autocast(device_type), torch.inference_mode():
        yield


def check_call(*arguments: object) -> None:
    """Raise ValueError where an engine's call does not do what is asked of it.

    That is a derivative in one of the tensors among `arguments`, or a mode that would see nothing.
    """
    if mode := watching():
        raise ValueError(
            f"Engine: modes of torch must not be active, got {mode}, which does not see into an "
            "engine; call the network itself"
        )
    for t in arguments:
        if not isinstance(t, torch.Tensor):
            continue
        if torch._C._functorch.is_functorch_wrapped_tensor(t):
            found = "one under a transform of torch.func"
        elif t.requires_grad and torch.is_grad_enabled():
            found = "one that requires gradients"
        elif forward_ad.unpack_dual(t).tangent is not None:
            found = "a dual tensor"
        else:
            continue
        raise ValueError(
            f"Engine: x, sigma and class_labels must be plain tensors, got {found}; engines have "
            "no derivatives: call the network itself, or .detach() what needs none"
        )


def unsupported_reason(net: object) -> str | None:
    """Why `net` cannot be prepared, as the end of a message; None where it can.

    Only a net that is its options and its tensors, of float32 on one device, can be prepared:
    whatever else a net does (`as_built.differences`) an engine would leave out without a word.
    """
    plain, unlabelled = unwrapped(net)
    if unlabelled and (type(net) is not Unlabelled or vars(net).keys() != {"net"}):
        return (
            f"{type(net).__name__} with methods or attributes of its own; wrap the net by "
            "unlabelled() and nothing else"
        )
    if not isinstance(plain, Precond):
        return f"{type(plain).__name__}; sample runs any callable, without an engine"
    if difference := next(as_built.differences(plain), None):
        return difference.text
    _, tensors = as_built.contents(plain)
    if plain.run_dtype not in (None, torch.float32):
        return f"one that runs in {plain.run_dtype}; set its run_dtype to None"
    if any(t.dtype != torch.float32 or t.layout != torch.strided for t in tensors):
        return "weights of another type; convert it with .float()"
    devices = sorted({str(t.device) for t in tensors})
    if len(devices) > 1 or tensors[0].device.type not in ("cpu", "cuda"):
        return f"one on {' and '.join(devices)}; move it with .cpu() or .cuda()"
    return None


def device_of(net: Denoiser) -> torch.device:
    """The device of a net that can be prepared."""
    return bare(net).unet.out_gain.device
