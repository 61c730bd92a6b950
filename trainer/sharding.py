"""A net whose weights lie in parts on several processes (FSDP2), and its way to one file and back.

A weight is split by rows, its output channels, so that the forced normalisation of a row, Adam and
the averages work on each part as on the whole. What leaves the trainer, a checkpoint or a snapshot,
is gathered into the first process, one tensor at a time; so a file does not tell how many processes
wrote it, nor whether they shared the weights.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist

from autoguide_fast import ops
from autoguide_fast.networks import Precond
from autoguide_fast.nn import MPConv
from autoguide_fast.unet import Block

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(net: Precond, device: torch.device, count: int) -> None:
    """Leaves to each of `count` processes its rows of the weights, on its `device`.

    Before a block runs, forward or backward, its weights are gathered, and dropped after. What all
    blocks need at once, the embedding, stays whole from the forward to the backward pass. Gains,
    which are single numbers, stay whole always, and so do their gradients: see `mean_gains`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Some layers return views, which nothing here changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (count,))
    for block in net.modules():
        if isinstance(block, Block):
            # The blocks' embeddings are computed before any block runs.
            names = ("conv_res0", "conv_res1", "conv_skip", "attn_qkv", "attn_proj")
            layers = [getattr(block, name) for name in names]
            fully_shard([layer for layer in layers if layer is not None], mesh=mesh)
    fully_shard(net, mesh=mesh, ignored_params=set(gains(net)))
    net.to(device)
    # What a layer normalised in training would be the gathered copy. `normalize` does it instead.
    for layer in _layers(net):
        layer.training = False


def gains(net: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that are single numbers."""
    return [p for p in net.parameters() if p.ndim == 0]


def mean_gains(net: torch.nn.Module, count: int) -> None:
    """Makes the gradients of the gains their mean over all `count` processes."""
    gradients = [p.grad for p in gains(net) if p.grad is not None]
    together = torch.stack(gradients)
    dist.all_reduce(together)
    together /= count
    for gradient, mean in zip(gradients, together.unbind(), strict=True):
        gradient.copy_(mean)


@torch.no_grad()
def normalize(net: torch.nn.Module) -> None:
    """Forced weight normalisation (EDM2 section 2.3) of the rows that this process has."""
    for layer in _layers(net):
        weight = local(layer.weight.detach())
        if weight.numel():
            ops.mp_weight_forced(weight)


def sharded_norm(gradients: list[torch.Tensor], rank: int) -> torch.Tensor:
    """The norm of gradients that lie on several processes, the same on each.

    Args:
        gradients: those of this process; those of gains, [], are the same on all.
        rank: of this process.
    """
    mine = [g for g in gradients if g.numel() and (g.ndim or rank == 0)]
    total = torch.zeros((), dtype=torch.float32, device=gradients[0].device)
    if mine:
        total += torch.stack(torch._foreach_norm(mine)).square().sum()
    dist.all_reduce(total)
    return total.sqrt()


def copy_of(net: torch.nn.Module) -> torch.nn.Module:
    """A copy of a net in eval mode, without gradients; sharded where the net is."""
    if not any(is_sharded(p) for p in net.parameters()):
        return copy.deepcopy(net).eval().requires_grad_(False)
    assert isinstance(net, Precond)  # as `shard` takes
    return _net_of({k: v.detach().clone() for k, v in net.state_dict().items()}, net)


def whole(net: Precond, first: bool, device: torch.device) -> Precond | None:
    """A net with all of its weights on `device`, in the first process; None in the others.

    Where nothing is sharded that is `net` itself.
    """
    if not any(is_sharded(p) for p in net.parameters()):
        return net if first else None
    state = gather(net.state_dict(), first)
    return _net_of({k: v.to(device) for k, v in state.items()}, net) if first else None


def _net_of(state: dict, like: Precond) -> Precond:
    with torch.device("meta"):
        net = Precond(**like.config)
    net.load_state_dict(state, assign=True)
    net.encoder, net.run_dtype = like.encoder, like.run_dtype
    return net.eval().requires_grad_(False)


def gather(state: Any, first: bool) -> Any:
    """A state, of dicts and lists, with whole tensors on the CPU in place of shards.

    All processes take part, and only the first keeps what was sharded; the others have None there.
    """
    if isinstance(state, dict):
        return {key: gather(value, first) for key, value in state.items()}
    if isinstance(state, list):
        return [gather(value, first) for value in state]
    if isinstance(state, torch.Tensor) and is_sharded(state):
        with torch.no_grad():
            value = state.full_tensor()
        return value.cpu() if first else None
    return state


def scatter(state: dict, module: torch.nn.Module) -> dict:
    """A module's state dict of whole tensors, each sharded as the module has it."""
    mine = module.state_dict()
    return {
        name: as_shard(rows(value, mine[name]), mine[name]) if name in mine else value
        for name, value in state.items()
    }


def is_sharded(t: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor lies in parts on several processes."""
    return hasattr(t, "device_mesh")  # importing DTensor to ask takes half a second


def local(t: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor: its rows, if it is sharded, in the same memory."""
    return t.to_local() if is_sharded(t) else t


def rows(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Of a whole tensor those rows that this process has of `like`, as a view."""
    if is_sharded(like):
        chunks = t.chunk(like.device_mesh.size())
        rank = like.device_mesh.get_local_rank()
        return chunks[rank] if rank < len(chunks) else t[:0]
    return t


def as_shard(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor sharded as `like` of which this process has `t`; `t` if that is not sharded."""
    if is_sharded(like):
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            t.to(like.device),
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )
    return t


def _layers(net: torch.nn.Module) -> list[MPConv]:
    return [m for m in net.modules() if isinstance(m, MPConv)]
