"""From a `Precond` to a plan: which instructions, which maps, which packed weights.

All that is known before an evaluation is settled here. Weights are normalised and scaled once, with
gains and the factors of magnitude-preserving sums folded in; everything between two convolutions
becomes the end of the first or the entry of a block.
"""

import math
from dataclasses import dataclass, field

import torch

from .. import cpu, ops
from .._extension import Map, Plan
from . import arena, calibrate, pack


@dataclass(eq=False)
class Feature:
    """A feature map: channels in runs, each padded to whole panels."""

    size: int
    runs: tuple
    border: int = 0
    storage: str = "f32"
    clip: tuple = (0.0, 0.0)  # of a u8 map: the range that it covers
    offset: int = 0

    @property
    def channels(self):
        return sum(map(pack.padded, self.runs))

    @property
    def bytes(self):
        size = self.size + 2 * self.border
        return size * size * self.channels * {"f32": 4, "bf16": 2, "u8": 1}[self.storage]

    @property
    def quantisation(self):
        """Scale and zero of a u8 map: value = scale * (stored - zero), and 0 is exact."""
        low, high = self.clip
        scale = (high - low) / 255
        return scale, round(-low / scale)

    def placed(self):
        scale, zero = self.quantisation if self.storage == "u8" else (1.0, 0)
        return {
            "offset": self.offset,
            "height": self.size,
            "width": self.size,
            "channels": self.channels,
            "border": self.border,
            "storage": self.storage,
            "scale": scale,
            "zero": zero,
        }


@dataclass(eq=False)
class Floats:
    """A run of float32 in the arena that is no feature map."""

    count: int
    offset: int = 0

    @property
    def bytes(self):
        return 4 * self.count

    def placed(self):
        return self.offset


@dataclass
class Lowered:
    """A plan, its weights, and what the profile says of each instruction."""

    plan: object
    weights: torch.Tensor
    image_bytes: int
    names: list
    flops: list  # of one image, multiplications and additions of the convolution itself
    recipe: tuple  # of the plan: its options and instructions

    def __reduce__(self):
        values = vars(self) | {"plan": None}
        return _restored, (values,)


def _restored(values):
    plan = Plan(**values["recipe"][0])
    for kind, arguments in values["recipe"][1]:
        _append(plan, kind, arguments)
    return Lowered(**values | {"plan": plan})


def _append(plan, kind, arguments):
    """Append an instruction, whose maps are given as dicts."""
    arguments = {k: Map(**v) if isinstance(v, dict) else v for k, v in arguments.items()}
    getattr(plan, kind)(**arguments)


@dataclass
class Recorder:
    """Instructions before their maps have a place."""

    storage: str
    ranges: dict = field(default_factory=dict)  # of what a convolution reads, for u8 maps
    mixed: bool = False  # u8 maps, but bf16 for convolutions that suit large tiles
    packer: pack.Packer = field(default_factory=pack.Packer)
    instructions: list = field(default_factory=list)
    modulations: int = 0

    def add(self, kind, name, flops=0.0, **arguments):
        self.instructions.append((kind, name, flops, arguments))

    def map(self, size, runs, border=0, reader=None):
        """A map of float32, or of the plan's storage type where only `reader` reads it."""
        if reader is None:
            return Feature(size, runs, border)
        if self.storage != "u8":
            return Feature(size, runs, border, self.storage)
        if self.mixed and _suits_large_tiles(size, reader.weight.shape):
            return Feature(size, runs, border, "bf16")
        return Feature(size, runs, border, self.storage, self.ranges[reader])

    def convolve(self, name, weight, source, rows=None, factor=1.0, **arguments):
        """A convolution of `source` with a prepared `weight` times `factor`."""
        rows = rows or (len(weight),)
        taps = weight[0, 0].numel()
        weight = pack.spread(weight * factor, rows, source.runs)
        flops = 2.0 * sum(rows) * sum(source.runs) * taps * source.size**2
        in_channels = source.channels
        if source.storage == "u8":
            scale, zero = source.quantisation
            integers, numbers = pack.quantised(weight, zero)
            numbers[0] *= scale
            arguments["weights"] = self.packer.add(pack.direct(integers, "u8"))
            arguments["dequantise"] = self.packer.add(numbers)
        elif _suits_winograd(source, weight):
            tile = 2 if self.storage == "bf16" else 4
            if source.storage == "bf16":
                packed = pack.winograd_bf16(weight, tile)
            else:
                packed = pack.winograd(weight)
            arguments |= {"winograd": tile, "weights": self.packer.add(packed)}
        else:
            if len(source.runs) == 1:  # the zeros after an image's few channels need no product
                in_channels = math.ceil(source.runs[0] / 4) * 4
            weight = weight[:, :in_channels]
            arguments["weights"] = self.packer.add(pack.direct(weight, source.storage))
        self.add(
            "convolve", name, flops, in_=source, taps=taps, in_channels=in_channels, **arguments
        )

    def finish(self, net):
        """Place the maps and make the plan."""
        used = {}
        for i, (_, _, _, arguments) in enumerate(self.instructions):
            for value in arguments.values():
                if isinstance(value, (Feature, Floats)):
                    first, _ = used.get(value, (i, i))
                    used[value] = (first, i)
        offsets, total = arena.place([(m.bytes, *span) for m, span in used.items()])
        for m, offset in zip(used, offsets, strict=True):
            m.offset = offset
        weights = self.packer.block()
        options = {
            "resolution": net.img_resolution,
            "image_channels": net.img_channels,
            "image_bytes": total,
            "weight_bytes": len(weights),
            "modulations": self.modulations,
        }
        plan = Plan(**options)
        names, flops, instructions = [], [], []
        for kind, name, count, arguments in self.instructions:
            placed = {k: v.placed() if hasattr(v, "placed") else v for k, v in arguments.items()}
            before = len(plan)
            _append(plan, kind, placed)
            instructions.append((kind, placed))
            names += [f"{name} {kind}" if kind != "convolve" else name] * (len(plan) - before)
            flops += [0.0] * (len(plan) - before - 1) + [count]
        return Lowered(plan, weights, total, names, flops, (options, instructions))


def _suits_winograd(source, weight):
    """Whether fewer products pay for transforms: F(4x4, 3x3) in float32, F(2x2, 3x3) in bf16."""
    outputs, inputs, taps = weight.shape
    if taps != 9 or source.storage == "u8" or min(inputs, outputs) < 32:
        return False
    if source.storage == "bf16":
        return source.size % 2 == 0
    return source.size % 4 == 0 and source.size >= 8


def _suits_large_tiles(size, weight):
    """Whether F(4x4, 3x3) in bf16 is faster than int8, and no less precise, for such a weight.

    Its weights take eight times the memory of those in int8: 64 tiles or more have to share them.
    """
    outputs, inputs, *kernel = weight
    return kernel == [3, 3] and size % 4 == 0 and size >= 32 and min(inputs, outputs) >= 32


def lower(net, storage="f32"):
    """Return the `Lowered` form of a plain float32 `Precond`.

    Args:
        net (Precond)
        storage ({"f32", "bf16", "u8"}): Type of what the convolutions of the blocks read.
    """
    record = Recorder(storage)
    if storage == "u8":
        record.ranges = calibrate.ranges(net)
        record.mixed = cpu.isa() == "avx512_bf16"
    unet = net.unet
    size = net.img_resolution
    image = record.map(size, (net.img_channels + 1,), border=1)
    record.add("load", "image", out=image, image_channels=net.img_channels)
    x, skips = image, []
    for name, module in unet.enc.items():
        if name.endswith("conv"):
            out = record.map(size, (module.weight.shape[0],))
            record.convolve(name, _prepared(module), x, out=out)
            x = out
        else:
            x = _block(record, name, module, x)
        skips.append(x)
    blocks = list(unet.dec.items())
    for name, module in blocks:
        last = name == blocks[-1][0]
        skip = skips.pop() if "block" in name else None
        x = _block(record, name, module, x, skip, border=int(last))
    result = record.map(size, (net.img_channels,))
    record.convolve("out_conv", _prepared(unet.out_conv, unet.out_gain), x, out=result)
    record.add("store", "image", in_=result, image_channels=net.img_channels)
    return record.finish(net)


def _prepared(conv, gain=1.0):
    return ops.mp_weight(conv.weight.detach(), gain).to(torch.float32)


def _balance(t):
    """The two weights of `mp_sum` (EDM2 eq. 88)."""
    norm = math.hypot(1 - t, t)
    return (1 - t) / norm, t / norm


RESAMPLE = {"down": -1, "keep": 0, "up": 1}


def _block(record, name, block, x, skip=None, border=0):
    """Append a `networks.Block`; return its output."""
    mode = RESAMPLE[block.resample_mode]
    size = {-1: x.size // 2, 0: x.size, 1: 2 * x.size}[mode]
    width = block.conv_res0.weight.shape[0]
    if block.flavor == "enc":
        x, act = _enter_encoder(record, name, block, x, mode, size)
    else:
        x, act = _enter_decoder(record, name, block, x, skip, mode, size)

    modulated = record.map(size, (width,), border=1, reader=block.conv_res1)
    record.convolve(
        f"{name} conv_res0",
        _prepared(block.conv_res0),
        act,
        act=modulated,
        modulation=record.modulations,
    )
    record.modulations += pack.padded(width)
    limit = math.inf if block.clip_act is None else float(block.clip_act)
    keep, add = _balance(block.res_balance)
    attends = bool(block.num_heads)
    out = record.map(size, (width,), border=0 if attends else border)
    # Attention's first convolution reads a copy in the plan's storage type.
    copy = None
    if attends and record.storage != "f32":
        copy = record.map(size, (width,), reader=block.attn_qkv)
    record.convolve(
        f"{name} conv_res1",
        _prepared(block.conv_res1),
        modulated,
        factor=add,
        sum=x,
        sum_weight=keep,
        out=out,
        limit=math.inf if attends else limit,
        **({"act": copy} if copy else {}),
    )
    if not attends:
        return out
    return _attention(record, name, block, out, copy or out, limit, border)


def _enter_encoder(record, name, block, x, mode, size):
    width = block.conv_res0.weight.shape[1]
    if block.conv_skip is not None:
        if mode:
            resampled = record.map(size, x.runs)
            record.add("block_prologue", name, x=x, raw=resampled, resample=mode)
            x, mode = resampled, 0
        narrow = record.map(size, (width,))
        record.convolve(f"{name} conv_skip", _prepared(block.conv_skip), x, out=narrow)
        x = narrow
    main = record.map(size, x.runs)
    act = record.map(size, x.runs, border=1, reader=block.conv_res0)
    record.add("block_prologue", name, x=x, main=main, act=act, resample=mode, normalised=width)
    return main, act


def _enter_decoder(record, name, block, x, skip, mode, size):
    runs = x.runs + (skip.runs if skip else ())
    arguments = {"x": x, "resample": mode}
    if skip:
        here, there = _balance(block.concat_balance)
        # EDM2 eq. 103.
        total, a, b = sum(runs), sum(x.runs), sum(skip.runs)
        arguments |= {
            "skip": skip,
            "weight": here * math.sqrt(total / a),
            "skip_weight": there * math.sqrt(total / b),
        }
    act = record.map(size, runs, border=1, reader=block.conv_res0)
    if block.conv_skip is not None:
        joined = record.map(size, runs, reader=block.conv_skip)
        record.add("block_prologue", name, act=act, raw=joined, **arguments)
        main = record.map(size, (block.conv_skip.weight.shape[0],))
        record.convolve(f"{name} conv_skip", _prepared(block.conv_skip), joined, out=main)
        return main, act
    if mode == 0 and skip is None:
        record.add("block_prologue", name, act=act, **arguments)
        return x, act
    main = record.map(size, runs)
    record.add("block_prologue", name, main=main, act=act, **arguments)
    if skip and any(count % pack.LANES for count in runs):
        # The block's sum adds maps of one layout: close the gap after the first run.
        whole = record.map(size, (total,))
        identity = torch.eye(total, device="cpu", dtype=torch.float32)[:, :, None, None]
        record.convolve(f"{name} join", identity, main, out=whole)
        main = whole
    return main, act


def _attention(record, name, block, x, source, limit, border):
    """Append the self-attention at the end of a block."""
    width, heads = block.attn_proj.weight.shape[0], block.num_heads
    channels = width // heads
    stride, pixels = pack.padded(channels), x.size**2
    # From interleaved [head, channel, part] to [part, head, channel].
    weight = _prepared(block.attn_qkv).unflatten(0, (heads, channels, 3))
    weight = weight.movedim(2, 0).flatten(0, 2)
    qkv = Feature(x.size, (channels,) * (3 * heads))
    qkv.storage = "f32" if record.storage == "f32" else "bf16"
    record.convolve(f"{name} attn_qkv", weight, source, rows=qkv.runs, out=qkv)
    mixed = record.map(x.size, (channels,) * heads, reader=block.attn_proj)
    keys = pack.padded(pixels)
    record.add(
        "attend",
        name,
        4.0 * heads * channels * pixels**2,
        qkv=qkv,
        out=mixed,
        heads=heads,
        head_channels=channels,
        head_stride=stride,
        pixels_stride=keys,
        q=Floats(heads * pixels * stride),
        k=Floats(heads * stride * keys),
        v=Floats(heads * pixels * stride),
    )
    out = record.map(x.size, (width,), border=border)
    keep, add = _balance(block.attn_balance)
    record.convolve(
        f"{name} attn_proj",
        _prepared(block.attn_proj),
        mixed,
        factor=add,
        sum=x,
        sum_weight=keep,
        out=out,
        limit=limit,
    )
    return out
