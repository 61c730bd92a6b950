"""One network made ready: its plan, its packed weights, its embedding."""

import math
import threading
import warnings

import torch

from ..guidance import Unlabelled
from ..networks import Precond
from .embedding import Embedding
from .lower import lower

CELLS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int8: "u8"}

# Images that a thread takes through the plan together, and bytes of their maps: with fewer, the
# weights are read again too often, which costs more than maps that leave the cache.
_CHUNK_IMAGES, _CHUNK_BYTES = 4, 24 << 20


class Arena:
    """The memory in which plans run, one at a time; grows to what the largest needs and stays.

    Where the system has no such block, teams of threads take half as many images at a time from
    then on, and so forth, down to one.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.block = torch.empty(0, dtype=torch.uint8)
        self.images = _CHUNK_IMAGES  # that a team takes together at most

    def reserve(self, nets, images, threads):
        """A block in which any of `nets` runs such a batch; to be called with the lock held."""
        while True:
            size = max(net.arena_bytes(images, threads) for net in nets)
            if self.block.numel() >= size:
                return self.block
            self.block = torch.empty(0, dtype=torch.uint8)  # before its successor is there
            try:
                self.block = torch.empty(size, dtype=torch.uint8)
            except (RuntimeError, MemoryError) as error:
                self._make_do(size, threads, error)

    def _make_do(self, size, threads, error):
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


class Snapshot:
    """What a prepared net keeps of a `Precond` or `Unlabelled` beside its weights."""

    def __init__(self, net):
        self.unlabelled = isinstance(net, Unlabelled)
        self.encoder = net.encoder
        net = bare(net)
        self.img_resolution, self.img_channels = net.img_resolution, net.img_channels
        self.label_dim = 0 if self.unlabelled else net.label_dim
        self.sigma_data = float(net.sigma_data)


class PreparedNet(Snapshot):
    """A denoiser `(x, sigma, class_labels) -> D` that a plan runs; a snapshot of a `Precond`.

    `shared` is one of the same net, whose plan and weights it then uses.
    """

    def __init__(self, net, dtype, arena, shared=None):
        super().__init__(net)
        net = bare(net)
        with torch.inference_mode():
            self.embedding = shared.embedding if shared else Embedding(net)
            self.lowered = shared.lowered if shared else lower(net, CELLS[dtype])
        self.arena = arena

    @property
    def weight_bytes(self):
        """Memory of the packed weights."""
        return self.lowered.weights.nbytes + self.embedding.bytes

    def __call__(self, x, sigma, class_labels=None):
        """Denoise `x [N, C, H, W]` at `sigma` (0-dim or [N]), as `Precond.forward` does.

        Returns float32 `[N, C, H, W]`; not differentiable.
        """
        with torch.inference_mode():
            x = x.to(torch.float32)
            sigma = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1)
            rows = self.embedding.of_images(sigma, None if self.unlabelled else class_labels)
            sigma = sigma.reshape(-1, 1, 1, 1)
            total = sigma**2 + self.sigma_data**2
        raw = torch.empty(x.shape)
        self.evaluate(x / total.sqrt(), 1.0, rows, raw)
        return self.sigma_data**2 / total * x + sigma * self.sigma_data / total.sqrt() * raw

    def modulations(self, levels, class_labels):
        """What noise levels and labels say to the blocks, `[levels, N or 1, modulations]`."""
        return self.embedding.modulations(levels, None if self.unlabelled else class_labels)

    def evaluate(self, x, c_in, modulations, result, times=None):
        """Write `F(c_in x)` into `result`, float32 `[N, C, H, W]`.

        Args:
            x (Tensor [N, C, H, W]): float32 or float64.
            c_in (float)
            modulations (Tensor [N or 1, modulations]): One noise level's, of `modulations`.
            result (Tensor): Contiguous.
            times (Tensor, optional): float64, one for each instruction; grows by its seconds.
        """
        threads = torch.get_num_threads()
        with self.arena.lock, torch.inference_mode():
            torch.ops.autoguide_fast.evaluate.default(
                self.lowered.plan.number, x, c_in, self.lowered.weights, modulations,
                self.arena.reserve([self], len(x), threads), result, threads,
                self.chunk(len(x), threads), times,
            )  # fmt: skip

    def arena_bytes(self, images, threads):
        """Bytes of the arena for a batch: bounded, because teams take a few images at a time."""
        teams = threads if images >= 4 * threads else math.gcd(images, threads)
        maps = self.chunk(images, threads) * self.lowered.image_bytes
        return teams * (maps + threads // teams * self.lowered.plan.scratch_bytes)

    def chunk(self, images, threads):
        """Images that a team of threads takes through the plan together."""
        share = -(-images // threads) if images >= threads else images
        return max(1, min(share, self.arena.images, _CHUNK_BYTES // self.lowered.image_bytes))


def bare(net):
    """`net` without an `unlabelled` around it."""
    return net.net if isinstance(net, Unlabelled) else net


def objection(net):
    """What keeps `net` from being prepared, as the end of a message, or None."""
    net = bare(net)
    if not isinstance(net, Precond):
        return f"{type(net).__name__}; sample runs any callable, without an engine"
    if type(net).forward is not Precond.forward or "forward" in vars(net):
        return "one with a forward of its own; sample runs it without an engine"
    if any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()):
        return "one with hooks; remove them, or let sample run it without an engine"
    parameters = list(net.parameters())
    if net.run_dtype not in (None, torch.float32):
        return f"one that runs in {net.run_dtype}; set its run_dtype to None"
    if any(p.dtype != torch.float32 for p in parameters):
        return "parameters of another type; convert it with .float()"
    devices = sorted({str(p.device) for p in parameters})
    if len(devices) > 1 or parameters[0].device.type not in ("cpu", "cuda"):
        return f"one on {' and '.join(devices)}; move it with .cpu() or .cuda()"
    return None


def device_of(net):
    """Where a net lies to which there is no objection."""
    return bare(net).unet.out_gain.device
