"""Writes a plan: instructions in turn, their packed weights, and places for their maps."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._C import Convolve, Map, Plan, Storage, Winograd
from ..networks import Precond
from ..nn import MPConv
from . import arena, pack
from .algorithms import Choice, Convolution, static_choice
from .profile import Label


class Feature:
    """A feature map: channels in runs, each padded to whole panels.

    Args:
        size: height and width.
        runs: channels of each run.
        border: of zeros, in pixels.
        storage: type of its values.
        clip: of a U8 map, the range that it covers.
        choice: of the algorithm of the one convolution that reads it, where there is only that.
    """

    def __init__(
        self,
        size: int,
        runs: tuple[int, ...],
        border: int = 0,
        storage: Storage = Storage.F32,
        clip: tuple[float, float] = (0.0, 0.0),
        choice: Choice | None = None,
    ) -> None:
        self.size, self.runs, self.storage, self.choice = size, runs, storage, choice
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
    choices: list[tuple[Label, Convolution, Choice]]  # of each convolution


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
    ranges: Mapping[torch.nn.Module, tuple[float, float]] = field(default_factory=dict)
    choose: Callable[[Convolution], Choice] = static_choice
    # None: nothing is packed, and there will be no plan; for `choose` to see all convolutions.
    packer: pack.Packer | None = field(default_factory=pack.Packer)
    instructions: list[Unplaced] = field(default_factory=list)
    names: list[Label] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    choices: list[tuple[Label, Convolution, Choice]] = field(default_factory=list)
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
        """A map of float32, or of the type of the one convolution, `reader`, that reads it."""
        if reader is None:
            return Feature(size, runs, border)
        taps, outputs = reader.weight[0, 0].numel(), pack.padded(len(reader.weight))
        choice = self.choose(_convolution(taps, runs, outputs, size, self.storage))
        storage = choice.algorithm.storage
        clip = self.ranges[reader] if storage == Storage.U8 else (0.0, 0.0)
        return Feature(size, runs, border, storage, clip, choice)

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
        taps, outputs = weight[0, 0].numel(), sum(map(pack.padded, rows))
        plan = self.storage if source.choice else Storage.F32
        convolution = _convolution(taps, source.runs, outputs, source.size, plan)
        choice = source.choice or self.choose(convolution)
        if self.packer is None:
            return
        self.choices.append((name, convolution, choice))
        algorithm = choice.algorithm
        flops = 2.0 * sum(rows) * sum(source.runs) * taps * source.size**2
        weight = pack.spread(weight * factor, rows, source.runs)
        fields["winograd"] = algorithm.winograd
        in_channels = source.channels
        if source.storage == Storage.U8:
            integers, numbers = pack.quantised(weight, source.zero)
            numbers[0] *= source.scale
            fields["weights"] = self.packer.add(pack.direct(integers, Storage.U8))
            fields["dequantise"] = self.packer.add(numbers)
        elif algorithm.winograd == Winograd.DIRECT:
            in_channels = convolution.used
            weight = pack.direct(weight[:, :in_channels], source.storage)
            fields["weights"] = self.packer.add(weight)
        elif source.storage == Storage.F32:
            fields["weights"] = self.packer.add(pack.winograd(weight))
        else:
            weight = pack.winograd_bf16(weight, int(algorithm.winograd))
            fields["weights"] = self.packer.add(weight)
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
        assert self.packer is not None
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
        return Lowered(plan, weights, self.names, self.flops, self.choices)


def _convolution(
    taps: int, runs: Sequence[int], outputs: int, size: int, plan: Storage
) -> Convolution:
    """What is read: maps of `runs` of channels, each padded; see `Convolution`."""
    inputs = sum(map(pack.padded, runs))
    # The zeros after an image's few channels need no product.
    used = math.ceil(runs[0] / 4) * 4 if len(runs) == 1 else inputs
    return Convolution(taps, inputs, outputs, used, size, plan)
