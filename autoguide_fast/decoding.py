"""What becomes of sampled batches: decoded, on a GPU beside sampling the next, and handed on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from .encoders import Decoder


class Decoding:
    """Decodes batches in their order and hands each on; a context manager.

    On a CUDA device a batch is decoded by a thread of its own, on a stream of its own, while the
    next one is sampled: one at a time, so that memory for two is needed at most. A CPU's cores are
    all at work while sampling, so there it is decoded at once.

    Args:
        encoder: what decodes, or None where samples are what is wanted.
        device: of the samples.
        deliver: called with the indices of a batch and its images, by the caller's thread.
        beside: whether to decode beside sampling; None for what is said above.

    A batch that was sampled is delivered even where sampling the next one fails.
    """

    def __init__(
        self,
        encoder: Decoder | None,
        device: torch.device,
        deliver: Callable[[range, Tensor], object],
        beside: bool | None = None,
    ) -> None:
        self.encoder, self.device, self.deliver = encoder, device, deliver
        on_gpu = device.type == "cuda"
        if beside is None:
            beside = on_gpu
        self._pool = ThreadPoolExecutor(1) if beside and encoder is not None else None
        self._stream = torch.cuda.Stream(device) if self._pool and on_gpu else None
        self._under_way: tuple[range, Future[Tensor]] | None = None

    def add(self, indices: range, samples: Tensor) -> None:
        """Decode the samples of the images `indices`, which may be overwritten afterwards."""
        if self._pool is None:
            self.deliver(indices, decoded(self.encoder, samples))
            return
        self._finish()
        samples = samples.clone()
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            samples.record_stream(self._stream)
        kind = self.device.type
        autocast = torch.autocast(
            kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
        )
        self._under_way = indices, self._pool.submit(self._decoded, samples, autocast)

    def _decoded(self, samples: Tensor, autocast: torch.autocast) -> Tensor:
        with torch.no_grad(), autocast, torch.cuda.stream(self._stream):
            return decoded(self.encoder, samples)

    def _finish(self) -> None:
        if self._under_way is None:
            return
        (indices, future), self._under_way = self._under_way, None
        images = future.result()
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            images.record_stream(current)
        self.deliver(indices, images)

    def __enter__(self) -> Decoding:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._finish()
        finally:
            if self._pool is not None:
                self._pool.shutdown()


def decoded(encoder: Decoder | None, x: Tensor) -> Tensor:
    """What an encoder makes of samples `x`, which are themselves what there is without one."""
    if encoder is None:
        return x
    images = encoder.decode(x)
    if not isinstance(images, torch.Tensor) or images.ndim == 0 or len(images) != len(x):
        got = list(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(
            f"sample: model.encoder must decode {len(x)} samples to a tensor of as many images, "
            f"got {got}; return uint8 [{len(x)}, C, H, W], or pass raw=True"
        )
    return images
