"""Two nets on a GPU that begin alike: their first layers run once, their weights lie there once.

A guide of the model's own weights (`guidance.weakened`, `guidance.intermediate_head`) computes what
the model does up to the first layer that differs. `joint.py` does the same for the CPU's plans.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..unet import Block
from .baked import BakedNet
from .embedding import Embedding


def share_layers(model: BakedNet, guide: BakedNet) -> int:
    """Has `guide` use the convolutions of `model` that have the same weights as its own.

    Returns:
        how many layers, from the first on, compute the same in both, given the same.
    """
    ours = dict(model.unet.named_modules())
    for name, layer in list(guide.unet.named_modules()):
        other = ours.get(name)
        convolution = not any(layer.children())
        if convolution and other is not layer and other is not None and _same(other, layer):
            guide.unet.set_submodule(name, other)
    if model.dtype != guide.dtype or not _embedded_alike(model, guide):
        return 0
    count = 0
    pairs = zip(model.unet.layers, guide.unet.layers, strict=False)
    for (name, layer), (other_name, other) in pairs:
        modulated = model.columns[:count] == guide.columns[:count]  # of all blocks up to this one
        if name != other_name or not modulated or not _same_layer(layer, other):
            break
        count += 1
    last = model.columns[count - 2].stop if count > 1 else 0
    rows, other_rows = model.embedding.blocks[:last], guide.embedding.blocks[:last]
    return count if torch.equal(rows, other_rows) else 0


def _same_layer(layer: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether both are one convolution, or blocks of the same convolutions and options."""
    if not isinstance(layer, Block) or not isinstance(other, Block):
        return layer is other
    return _options(layer) == _options(other) and dict(layer.named_children()) == dict(
        other.named_children()
    )


def _options(block: Block) -> dict[str, Any]:
    """What a block does in evaluation mode apart from its convolutions."""
    unused = {"training", "dropout"}
    if not block.num_heads:
        unused |= {"attn_balance", "attn_temperature"}
    return {k: v for k, v in vars(block).items() if not k.startswith("_") and k not in unused}


def _embedded_alike(model: BakedNet, guide: BakedNet) -> bool:
    """Whether both make the same embedding of noise level and label."""
    ours, theirs = model.embedding, guide.embedding
    if ours.guidance is not None or theirs.guidance is not None:
        return False  # of a weight, which each net is told for itself
    if model.unlabelled != guide.unlabelled or ours.label_balance != theirs.label_balance:
        return False
    pairs = zip(_tensors(ours), _tensors(theirs), strict=True)
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _tensors(embedding: Embedding) -> tuple[Tensor | None, ...]:
    return embedding.freqs, embedding.phases, embedding.noise, embedding.label


def _same(layer: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two convolutions are of one kind and have the same weights, bit for bit."""
    ours, theirs = dict(layer.named_buffers()), dict(other.named_buffers())
    return (
        type(layer) is type(other)
        and ours.keys() == theirs.keys()
        and all(_same_bits(value, theirs[name]) for name, value in ours.items())
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (t.contiguous().flatten().view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)
