"""From a `Precond` to a plan: which instructions, which maps, which packed weights.

All that is known before an evaluation is settled here. Weights are normalised and scaled once, with
gains and the factors of magnitude-preserving sums folded in; everything between two convolutions
becomes the end of the first or the entry of a block.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import cpu, ops
from .._C import (
    Attend,
    BlockPrologue,
    Convolve,
    Load,
    Map,
    Plan,
    Resample,
    SplitHeads,
    Storage,
    Store,
    Winograd,
)
from ..networks import Block, Precond
from ..nn import MPConv
from . import arena, calibrate, pack
from .profile import Label


class Feature:
    """A feature map: channels in runs, each padded to whole panels.

    Args:
        size: height and width.
        runs: channels of each run.
        border: of zeros, in pixels.
        storage: type of its values.
        clip: of a U8 map, the range that it covers.
    """

    def __init__(
        self,
        size: int,
        runs: tuple[int, ...],
        border: int = 0,
        storage: Storage = Storage.F32,
        clip: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.size, self.runs, self.storage = size, runs, storage
        self.channels = sum(map(pack.padded, runs))
        # Of a U8 map: value = scale * (stored - zero), and 0 is exact.
        self.scale, self.zero = 1.0, 0
        if storage == Storage.U8:
            low, high = clip
            self.scale = (high - low) / 255
            self.zero = round(-low / self.scale)
        self.unplaced = Map(
            height=size,
            width=size,
            channels=self.channels,
            border=border,
            storage=storage,
            scale=self.scale,
            zero=self.zero,
        )

    @property
    def bytes(self) -> int:
        return self.unplaced.bytes

    def placed(self, offset: int) -> Map:
        return self.unplaced.at(offset)


@dataclass(eq=False)
class Bytes:
    """A part of the arena that is no feature map."""

    bytes: int

    def placed(self, offset: int) -> int:
        return offset


@dataclass
class Lowered:
    """A plan, its weights, and what the profile says of each instruction."""

    plan: Plan
    weights: Tensor
    names: list[Label]
    flops: list[float]  # of one image, multiplications and additions of the convolution itself


@dataclass
class Unplaced:
    """An instruction before its maps have a place."""

    kind: type  # of the instruction
    fields: dict[str, Any]  # of it; `Feature`, `Bytes` and `Unplaced` where it has offsets

    def parts(self) -> Iterator[Feature | Bytes]:
        """What it needs of the arena."""
        for value in self.fields.values():
            if isinstance(value, Unplaced):
                yield from value.parts()
            elif isinstance(value, (Feature, Bytes)):
                yield value

    def placed(self, places: Mapping[Feature | Bytes, Any]) -> Any:
        """The instruction, with each of its parts `placed`."""

        def place(value: Any) -> Any:
            if isinstance(value, Unplaced):
                return value.placed(places)
            return places[value] if isinstance(value, (Feature, Bytes)) else value

        return self.kind(**{name: place(value) for name, value in self.fields.items()})


@dataclass
class PlanWriter:
    """Collects the instructions of a plan, and places their maps in the arena at the end."""

    storage: Storage
    # Of what a convolution reads, for U8 maps.
    ranges: dict[torch.nn.Module, tuple[float, float]] = field(default_factory=dict)
    mixed: bool = False  # U8 maps, but BF16 for convolutions that suit large tiles
    packer: pack.Packer = field(default_factory=pack.Packer)
    instructions: list[Unplaced] = field(default_factory=list)
    names: list[Label] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    modulations: int = 0

    def add(self, kind: type, name: Label, flops: float = 0.0, **fields: Any) -> Unplaced:
        """Append an instruction of that kind; returns it."""
        instruction = Unplaced(kind, fields)
        self.instructions.append(instruction)
        self.names.append(name)
        self.flops.append(flops)
        return instruction

    def map(
        self, size: int, runs: tuple[int, ...], border: int = 0, reader: MPConv | None = None
    ) -> Feature:
        """A map of float32, or of the plan's storage type where only `reader` reads it."""
        if reader is None:
            return Feature(size, runs, border)
        if self.storage != Storage.U8:
            return Feature(size, runs, border, self.storage)
        if self.mixed and _suits_large_tiles(size, reader.weight.shape):
            return Feature(size, runs, border, Storage.BF16)
        return Feature(size, runs, border, self.storage, self.ranges[reader])

    def convolve(
        self,
        name: Label,
        weight: Tensor,
        source: Feature,
        rows: Sequence[int] | None = None,
        factor: float = 1.0,
        **fields: Any,
    ) -> None:
        """A convolution of `source` with a prepared `weight` times `factor`."""
        rows = rows or (len(weight),)
        taps = weight[0, 0].numel()
        weight = pack.spread(weight * factor, rows, source.runs)
        flops = 2.0 * sum(rows) * sum(source.runs) * taps * source.size**2
        in_channels = source.channels
        if source.storage == Storage.U8:
            integers, numbers = pack.quantised(weight, source.zero)
            numbers[0] *= source.scale
            fields["weights"] = self.packer.add(pack.direct(integers, Storage.U8))
            fields["dequantise"] = self.packer.add(numbers)
        elif _suits_winograd(source, weight):
            if source.storage == Storage.F32:
                algorithm, packed = Winograd.F4X4, pack.winograd(weight)
            else:  # large tiles only for U8 plans, whose maps of BF16 suit them
                algorithm = Winograd.F2X2 if self.storage == Storage.BF16 else Winograd.F4X4
                packed = pack.winograd_bf16(weight, int(algorithm))
            fields |= {"winograd": algorithm, "weights": self.packer.add(packed)}
        else:
            if len(source.runs) == 1:  # the zeros after an image's few channels need no product
                in_channels = math.ceil(source.runs[0] / 4) * 4
            weight = weight[:, :in_channels]
            fields["weights"] = self.packer.add(pack.direct(weight, source.storage))
        self.add(Convolve, name, flops, in_=source, taps=taps, in_channels=in_channels, **fields)

    def finish(self, net: Precond) -> Lowered:
        """Place the maps and make the plan."""
        used: dict[Feature | Bytes, tuple[int, int]] = {}
        for i, instruction in enumerate(self.instructions):
            for part in instruction.parts():
                first, _ = used.get(part, (i, i))
                used[part] = (first, i)
        offsets, total = arena.place([(part.bytes, *span) for part, span in used.items()])
        places = {part: part.placed(offset) for part, offset in zip(used, offsets, strict=True)}
        weights = self.packer.block()
        plan = Plan(
            resolution=net.img_resolution,
            image_channels=net.img_channels,
            image_bytes=total,
            weight_bytes=len(weights),
            modulations=self.modulations,
        )
        for instruction in self.instructions:
            plan.add(instruction.placed(places))
        return Lowered(plan, weights, self.names, self.flops)


def _suits_winograd(source: Feature, weight: Tensor) -> bool:
    """Whether fewer products pay for transforms: F(4x4, 3x3) in float32, F(2x2, 3x3) in bf16."""
    outputs, inputs, taps = weight.shape
    if taps != 9 or source.storage == Storage.U8 or min(inputs, outputs) < 32:
        return False
    if source.storage == Storage.BF16:
        return source.size % 2 == 0 and not _prefers_direct()
    return source.size % 4 == 0 and source.size >= 8


def _prefers_direct() -> bool:
    """Whether products in bf16 are so fast that fewer of them do not pay for transforms: AMX's."""
    return cpu.has_tiles()


def _suits_large_tiles(size: int, shape: torch.Size) -> bool:
    """Whether F(4x4, 3x3) in bf16 is faster than int8, and no less precise.

    Its weights, `shape`, take eight times the memory of those in int8: 64 tiles or more have to
    share them.
    """
    outputs, inputs, *kernel = shape
    return kernel == [3, 3] and size % 4 == 0 and size >= 32 and min(inputs, outputs) >= 32


def lower(net: Precond, storage: Storage = Storage.F32) -> Lowered:
    """Return the `Lowered` form of a plain float32 `Precond`.

    Args:
        net: what is lowered.
        storage: type of what the convolutions of the blocks read.
    """
    writer = PlanWriter(storage)
    if storage == Storage.U8:
        writer.ranges = calibrate.ranges(net)
        writer.mixed = cpu.isa() == "avx512_bf16"
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
        x = _block(writer, name, module, x, skip, border=int(last))
    result = writer.map(size, (net.img_channels,))
    writer.convolve(Label("out_conv"), _prepared(unet.out_conv, unet.out_gain), x, out=result)
    writer.add(Store, Label("store", "image"), in_=result, image_channels=net.img_channels)
    return writer.finish(net)


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
    """Append a `networks.Block`; return its output."""
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
