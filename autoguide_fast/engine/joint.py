"""Two nets that begin alike as one plan: what they have in common runs once.

A guide of the model's own weights (`guidance.weakened`) computes what the model does up to the
first block that differs. Plans are compared instruction by instruction, weights by their content,
so nothing has to be known of how the nets came about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import xxhash
from torch import Tensor

from .._C import Attend, BlockPrologue, Convolve, Load, Map, Plan, SplitHeads, Store
from . import arena
from .embedding import Embedding
from .lower import Lowered

# Of each instruction: the maps that it writes and reads, its offsets of weights, all else.
_FIELDS: dict[type, tuple[tuple[str, ...], ...]] = {
    Load: (("out",), (), (), ("image_channels",)),
    BlockPrologue: (
        ("main", "act", "raw"),
        ("x", "skip"),
        (),
        ("resample", "weight", "skip_weight", "normalised"),
    ),
    Convolve: (
        ("out", "act"),
        ("in_", "sum"),
        ("weights", "dequantise"),
        ("taps", "in_channels", "winograd", "modulation", "sum_weight", "limit"),
    ),
    SplitHeads: (
        ("q", "k", "v"),
        ("qkv",),
        (),
        ("heads", "head_channels", "head_stride", "pixels_stride", "temperature"),
    ),
    Attend: (("out",), (), (), ()),
    Store: ((), ("in_",), (), ("image_channels",)),
}
_PARTS = {"q": "query_bytes", "k": "key_bytes", "v": "value_bytes"}  # of attention, no maps
_SHAPE = ("height", "width", "channels", "border", "storage", "scale", "zero")

Value = tuple[int, int, str]  # what an instruction writes: the net, its number there, the field
Content = tuple[bytes, int]  # of packed weights: a digest of 128 bits, and how many bytes


@dataclass
class _Line:
    """An instruction apart from where its maps and weights lie."""

    kind: type
    numbers: dict[str, Any]
    writes: dict[str, Any] = field(default_factory=dict)  # a map's shape, or bytes
    reads: dict[str, tuple[Any, Value]] = field(default_factory=dict)
    weights: dict[str, Content] = field(default_factory=dict)
    maps: dict[str, Map] = field(default_factory=dict)
    split: _Line | None = None  # of `Attend`, what it reads

    def same(self, other: _Line) -> bool:
        """Whether it computes the same from the same."""
        return replace(self, maps={}, split=None) == replace(other, maps={}, split=None)


def common_plan(model: Lowered, guide: Lowered) -> tuple[Lowered, float] | None:
    """One plan with the results of both, the model's first; and the share of work that it saves.

    Its weights are those of the model, and with them what the guide has besides. The share is of
    the guide's multiplications. None where there is no convolution that both have in common.
    """
    ours, theirs = _lines(model), _lines(guide)
    pairs = zip(ours, theirs, strict=False)
    common = next((i for i, (a, b) in enumerate(pairs) if not a.same(b)), len(theirs) - 1)
    saved = sum(guide.flops[:common])
    if not saved:
        return None
    own = theirs[common:]
    for line in own:
        if line.kind is Store:
            line.numbers["result"] = 1
        for part in filter(None, (line, line.split)):
            part.reads = {
                name: (shape, (1, *value[1:]) if value[1] >= common else value)
                for name, (shape, value) in part.reads.items()
            }
    numbers = [(0, i) for i in range(len(ours))]
    numbers += [(1, i) for i in range(common, len(theirs))]
    weights, offsets = _weights(model, guide, own)
    plan = _placed(model.plan, [*ours, *own], numbers, offsets, len(weights))
    joined = Lowered(
        plan,
        weights,
        model.names + guide.names[common:],
        model.flops + guide.flops[common:],
        model.choices,  # the guide's, being of its weights, are the same
    )
    return joined, saved / sum(guide.flops)


def begins_alike(a: Embedding, b: Embedding) -> bool:
    """Whether `a` makes the modulations that `b` does of a level and a label, for more blocks or as
    many.
    """
    if (a.label_dim, a.label_balance) != (b.label_dim, b.label_balance):
        return False
    return all(
        x is None if y is None else x is not None and torch.equal(x, y)
        for x, y in (
            (a.freqs, b.freqs),
            (a.phases, b.phases),
            (a.noise, b.noise),
            (a.label, b.label),
            (a.guidance, b.guidance),
            (a.blocks[: len(b.blocks)], b.blocks),
        )
    )


def _contents(lowered: Lowered) -> dict[int, Content]:
    """The weights of a plan by their offsets."""
    offsets = {0}
    for instruction in lowered.plan.instructions:
        if isinstance(instruction, Convolve):
            offsets |= {instruction.weights, instruction.dequantise} - {-1}
    ordered = sorted(offsets)
    data = lowered.weights.numpy()
    ends = [*ordered[1:], len(data)]
    return {
        a: (xxhash.xxh3_128_digest(data[a:b].data), b - a)
        for a, b in zip(ordered, ends, strict=True)
    }


def _lines(lowered: Lowered) -> list[_Line]:
    weights = _contents(lowered)
    here: dict[int, Value] = {}  # what lies at an offset of the arena
    lines: list[_Line] = []
    for number, instruction in enumerate(lowered.plan.instructions):
        line = _line(instruction, weights, here)
        if isinstance(instruction, Attend):
            line.split = _line(instruction.from_, weights, here)
            for name in _PARTS:
                offset = getattr(instruction.from_, name)
                line.reads[name] = None, here[offset]
        lines.append(line)
        for name in line.writes:
            value = getattr(instruction, name)
            here[value.offset if isinstance(value, Map) else value] = 0, number, name
    return lines


def _line(instruction: Any, weights: dict[int, Content], here: dict[int, Value]) -> _Line:
    kind = type(instruction)
    writes, reads, offsets, numbers = _FIELDS[kind]
    line = _Line(kind, {name: getattr(instruction, name) for name in numbers})
    for name in (*writes, *reads):
        value = getattr(instruction, name)
        if not isinstance(value, Map):
            line.writes[name] = getattr(instruction, _PARTS[name])
        elif value:
            shape = tuple(getattr(value, option) for option in _SHAPE)
            line.maps[name] = value
            if name in writes:
                line.writes[name] = shape
            else:
                line.reads[name] = shape, here[value.offset]
    for name in offsets:
        offset = getattr(instruction, name)
        if offset >= 0:
            line.weights[name] = weights[offset]
    return line


def _weights(
    model: Lowered, guide: Lowered, lines: Sequence[_Line]
) -> tuple[Tensor, dict[Content, int]]:
    """The model's weights and what these lines of the guide have besides, and where each lies."""
    offsets = {content: offset for offset, content in _contents(model).items()}
    place = {content: offset for offset, content in _contents(guide).items()}
    end, added = len(model.weights), []
    for line in lines:
        for content in line.weights.values():
            if content not in offsets:
                offsets[content], start = end, place[content]
                end += content[1]
                added.append(guide.weights[start : start + content[1]])
    weights = torch.cat([model.weights, *added]) if added else model.weights
    return weights, offsets


def _used(lines: Sequence[_Line], numbers: Sequence[tuple[int, int]]) -> Iterator[tuple]:
    """What lies in the arena: value, bytes, and the place of an instruction that uses it."""
    for place, (line, (net, number)) in enumerate(zip(lines, numbers, strict=True)):
        for name, size in line.writes.items():
            size = line.maps[name].bytes if name in line.maps else size
            yield (net, number, name), size, place
        for _, value in line.reads.values():
            yield value, 0, place


def _placed(
    like: Plan,
    lines: Sequence[_Line],
    numbers: Sequence[tuple[int, int]],
    offsets: dict[Content, int],
    weight_bytes: int,
) -> Plan:
    """The plan of these lines; `numbers` say of which net and which of its instructions each is."""
    spans: dict[Value, tuple[int, int, int]] = {}
    for value, size, place in _used(lines, numbers):
        known, first, _ = spans.get(value, (size, place, place))
        spans[value] = known, first, place
    found, total = arena.place(list(spans.values()))
    where = dict(zip(spans, found, strict=True))
    plan = Plan(
        resolution=like.resolution,
        image_channels=like.image_channels,
        image_bytes=total,
        weight_bytes=weight_bytes,
        modulations=like.modulations,
    )
    for line, (net, number) in zip(lines, numbers, strict=True):

        def made(line: _Line, net: int = net, number: int = number) -> Any:
            fields = dict(line.numbers)
            for name in line.writes:
                offset = where[net, number, name]
                fields[name] = line.maps[name].at(offset) if name in line.maps else offset
            for name, (_, value) in line.reads.items():
                if name in line.maps:
                    fields[name] = line.maps[name].at(where[value])
            fields |= {name: offsets[content] for name, content in line.weights.items()}
            return fields

        if line.split is not None:
            # Attention reads what its heads were split into, wherever the maps lay that they
            # were split from.
            parts = {name: where[line.reads[name][1]] for name in _PARTS}
            split = line.split
            source = split.maps["qkv"].at(where[split.reads["qkv"][1]])
            heads = SplitHeads(**split.numbers, **parts, qkv=source)
            plan.add(Attend(from_=heads, out=made(line)["out"]))
        else:
            plan.add(line.kind(**made(line)))
    return plan
