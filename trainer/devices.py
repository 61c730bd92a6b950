"""Where a net is trained, and its compilation for that place."""

from __future__ import annotations

import torch

from .options import TrainOptions
from .processes import Processes


def choose_device(options: TrainOptions, processes: Processes) -> torch.device:
    """The device on which this process trains: what `options.device` says, 'auto' a GPU if any.

    Raises:
        ValueError: there is no GPU, or none for this process, or `options.graph` without one.
    """
    if options.device == "cpu" or (options.device == "auto" and not torch.cuda.is_available()):
        device = torch.device("cpu")
    else:
        device = _own_gpu(processes.local_rank)
    if options.graph and device.type != "cuda":
        raise ValueError(
            f"train: graph must be off except on a GPU, got device {device.type}; leave out --graph"
        )
    return device


def _own_gpu(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        why = "a torch built for it but no GPU that it can use"
        if torch.version.cuda is None:
            why = f"torch {torch.__version__}, which is built without CUDA"
        raise ValueError(
            f"train: device must be there, got cuda with {why}; use --device cpu, or install a "
            "CUDA build of torch on a machine with an NVIDIA GPU"
        )
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(
            f"train: device must give each process a GPU of its own, got {count} for process "
            f"{local_rank + 1} on this machine; use --nproc-per-node {count}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def compile_net(net: torch.nn.Module) -> None:
    """Has calls of a net run through `torch.compile`, forward and backward; shapes are fixed.

    Raises:
        RuntimeError: at the first call, where no compiler is found.
    """
    from torch._inductor import config

    # With it Inductor (torch 2.13, CPU) computes wrong gradients of convolutional nets.
    config.layout_optimization = False
    net.compile(fullgraph=True, dynamic=False)
