"""From a `Precond` to a plan: which instructions, which maps, which packed weights.

All that is known before an evaluation is settled here. Weights are normalised and scaled once, with
gains and the factors of magnitude-preserving sums folded in; everything between two convolutions
becomes the end of the first or the entry of a block.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from .. import as_built, ops
from .._C import Attend, BlockPrologue, Load, Resample, SplitHeads, Storage, Store
from ..networks import Precond
from ..nn import MPConv
from ..unet import Block
from . import calibrate, choice, pack
from .algorithms import Choice, Convolution, static_choice
from .plan_writer import Bytes, Feature, Lowered, PlanWriter
from .profile import Label


def lower(net: Precond, storage: Storage = Storage.F32) -> Lowered:
    """Return the `Lowered` form of a plain float32 `Precond`.

    Args:
        net: what is lowered.
        storage: type of what the convolutions of the blocks read.
    """
    ranges = calibrate.ranges(net) if storage == Storage.U8 else {}
    chosen = choice.of_convolutions(convolutions(net, storage))
    writer = PlanWriter(storage, ranges, chosen.__getitem__)
    _write(writer, net)
    return writer.finish(net)


def convolutions(net: Precond, storage: Storage) -> list[Convolution]:
    """All convolutions of the plan of a net, each once."""
    found: dict[Convolution, None] = {}

    def choose(convolution: Convolution) -> Choice:
        found[convolution] = None
        return static_choice(convolution)

    config, tensors = as_built.contents(net)
    shapes = as_built.rebuilt(config, [t.to("meta") for t in tensors])
    _write(PlanWriter(storage, defaultdict(lambda: (-1.0, 1.0)), choose, packer=None), shapes)
    return list(found)


def _write(writer: PlanWriter, net: Precond) -> None:
    """Append all instructions of a net."""
    unet = net.unet
    size = net.img_resolution
    image = writer.map(size, (net.img_channels + 1,), border=1)
    writer.add(Load, Label("load", "image"), out=image, image_channels=net.img_channels)
    x, skips = image, []
    for name, module in unet.enc.items():
        if isinstance(module, MPConv):
            out = writer.map(size, (module.weight.shape[0],))
            writer.convolve(Label(name), _prepared(module), x, out=out)
            x = out
        else:
            assert isinstance(module, Block)
            x = _block(writer, name, module, x)
        skips.append(x)
    blocks = list(unet.dec.items())
    for name, module in blocks:
        last = name == blocks[-1][0]
        skip = skips.pop() if "block" in name else None
        assert isinstance(module, Block)
        # The last convolution reads a border, and so would that of a guide that ends at the head.
        x = _block(writer, name, module, x, skip, border=int(last or name == unet.head_after))
    result = writer.map(size, (net.img_channels,))
    writer.convolve(Label("out_conv"), _prepared(unet.out_conv, unet.out_gain), x, out=result)
    writer.add(Store, Label("store", "image"), in_=result, image_channels=net.img_channels)


def _prepared(conv: MPConv, gain: float | Tensor = 1.0) -> Tensor:
    return ops.mp_weight(conv.weight.detach(), gain).to(torch.float32)


def _balance(t: float) -> tuple[float, float]:
    """The two weights of `mp_sum` (EDM2 eq. 88)."""
    norm = math.hypot(1 - t, t)
    return (1 - t) / norm, t / norm


RESAMPLE = {"down": Resample.DOWN, "keep": Resample.KEEP, "up": Resample.UP}


def _block(
    writer: PlanWriter,
    name: str,
    block: Block,
    x: Feature,
    skip: Feature | None = None,
    border: int = 0,
) -> Feature:
    """Append a `unet.Block`; return its output."""
    mode = RESAMPLE[block.resample_mode]
    size = {Resample.DOWN: x.size // 2, Resample.KEEP: x.size, Resample.UP: 2 * x.size}[mode]
    width = block.conv_res0.weight.shape[0]
    if block.flavor == "enc":
        x, act = _enter_encoder(writer, name, block, x, mode, size)
    else:
        x, act = _enter_decoder(writer, name, block, x, skip, mode, size)
    if block.left_out:
        writer.modulations += pack.padded(width)
        return x

    modulated = writer.map(size, (width,), border=1, reader=block.conv_res1)
    writer.convolve(
        Label("conv_res0", name),
        _prepared(block.conv_res0),
        act,
        act=modulated,
        modulation=writer.modulations,
    )
    writer.modulations += pack.padded(width)
    limit = math.inf if block.clip_act is None else float(block.clip_act)
    keep, add = _balance(block.res_balance)
    attends = bool(block.num_heads)
    out = writer.map(size, (width,), border=0 if attends else border)
    # Attention's first convolution reads a copy in the plan's storage type.
    copy = None
    if attends and writer.storage != Storage.F32:
        copy = writer.map(size, (width,), reader=block.attn_qkv)
    copied: dict[str, Any] = {} if copy is None else {"act": copy}
    writer.convolve(
        Label("conv_res1", name),
        _prepared(block.conv_res1),
        modulated,
        factor=add,
        sum=x,
        sum_weight=keep,
        out=out,
        limit=math.inf if attends else limit,
        **copied,
    )
    if not attends:
        return out
    return _attention(writer, name, block, out, copy or out, limit, border)


def _reader(block: Block) -> MPConv | None:
    """What reads the activated entry of a block; nothing in one that is left out."""
    return None if block.left_out else block.conv_res0


def _enter_encoder(
    writer: PlanWriter, name: str, block: Block, x: Feature, mode: Resample, size: int
) -> tuple[Feature, Feature]:
    width = block.conv_res0.weight.shape[1]
    if block.conv_skip is not None:
        if mode != Resample.KEEP:
            resampled = writer.map(size, x.runs)
            writer.add(
                BlockPrologue, Label("block_prologue", name), x=x, raw=resampled, resample=mode
            )
            x, mode = resampled, Resample.KEEP
        narrow = writer.map(size, (width,))
        writer.convolve(Label("conv_skip", name), _prepared(block.conv_skip), x, out=narrow)
        x = narrow
    main = writer.map(size, x.runs)
    act = writer.map(size, x.runs, border=1, reader=_reader(block))
    writer.add(
        BlockPrologue,
        Label("block_prologue", name),
        x=x,
        main=main,
        act=act,
        resample=mode,
        normalised=width,
    )
    return main, act


def _enter_decoder(
    writer: PlanWriter,
    name: str,
    block: Block,
    x: Feature,
    skip: Feature | None,
    mode: Resample,
    size: int,
) -> tuple[Feature, Feature]:
    runs = x.runs + (skip.runs if skip else ())
    arguments: dict[str, Any] = {"x": x, "resample": mode}
    if skip:
        here, there = _balance(block.concat_balance)
        # EDM2 eq. 103.
        total, a, b = sum(runs), sum(x.runs), sum(skip.runs)
        arguments |= {
            "skip": skip,
            "weight": here * math.sqrt(total / a),
            "skip_weight": there * math.sqrt(total / b),
        }
    act = writer.map(size, runs, border=1, reader=_reader(block))
    if block.conv_skip is not None:
        joined = writer.map(size, runs, reader=block.conv_skip)
        writer.add(BlockPrologue, Label("block_prologue", name), act=act, raw=joined, **arguments)
        main = writer.map(size, (block.conv_skip.weight.shape[0],))
        writer.convolve(Label("conv_skip", name), _prepared(block.conv_skip), joined, out=main)
        return main, act
    if mode == Resample.KEEP and skip is None:
        writer.add(BlockPrologue, Label("block_prologue", name), act=act, **arguments)
        return x, act
    main = writer.map(size, runs)
    writer.add(BlockPrologue, Label("block_prologue", name), main=main, act=act, **arguments)
    if skip and any(count % pack.LANES for count in runs):
        # The block's sum adds maps of one layout: close the gap after the first run.
        whole = writer.map(size, (total,))
        identity = torch.eye(total, device="cpu", dtype=torch.float32)[:, :, None, None]
        writer.convolve(Label("join", name), identity, main, out=whole)
        main = whole
    return main, act


def _attention(
    writer: PlanWriter,
    name: str,
    block: Block,
    x: Feature,
    source: Feature,
    limit: float,
    border: int,
) -> Feature:
    """Append the self-attention at the end of a block."""
    assert block.attn_qkv is not None and block.attn_proj is not None  # as there are heads
    width, heads = block.attn_proj.weight.shape[0], block.num_heads
    channels = width // heads
    stride, pixels = pack.padded(channels), x.size**2
    # From interleaved [head, channel, part] to [part, head, channel].
    weight = _prepared(block.attn_qkv).unflatten(0, (heads, channels, 3))
    weight = weight.movedim(2, 0).flatten(0, 2)
    storage = Storage.F32 if writer.storage == Storage.F32 else Storage.BF16
    qkv = Feature(x.size, (channels,) * (3 * heads), storage=storage)
    writer.convolve(Label("attn_qkv", name), weight, source, rows=qkv.runs, out=qkv)
    mixed = writer.map(x.size, (channels,) * heads, reader=block.attn_proj)
    shape: dict[str, Any] = {
        "heads": heads,
        "head_channels": channels,
        "head_stride": stride,
        "pixels_stride": pack.padded(pixels),
        "temperature": block.attn_temperature,
    }
    sizes = SplitHeads(qkv=qkv.unplaced, **shape)
    label = Label("attend", name)
    split = writer.add(
        SplitHeads,
        label,
        qkv=qkv,
        q=Bytes(sizes.query_bytes),
        k=Bytes(sizes.key_bytes),
        v=Bytes(sizes.value_bytes),
        **shape,
    )
    writer.add(Attend, label, 4.0 * heads * channels * pixels**2, from_=split, out=mixed)
    out = writer.map(x.size, (width,), border=border)
    keep, add = _balance(block.attn_balance)
    writer.convolve(
        Label("attn_proj", name),
        _prepared(block.attn_proj),
        mixed,
        factor=add,
        sum=x,
        sum_weight=keep,
        out=out,
        limit=limit,
    )
    return out
