"""The ways to compute a convolution of a plan, and which is taken where none was measured."""

from __future__ import annotations

from dataclasses import dataclass

from .. import cpu
from .._C import Storage, Winograd


@dataclass(frozen=True)
class Algorithm:
    """One way to compute a convolution.

    Attributes:
        storage: type of the map that it reads, and of its factors.
        winograd: the tile, or the sum of products itself.
    """

    storage: Storage
    winograd: Winograd = Winograd.DIRECT

    def __str__(self) -> str:
        return f"{self.storage.name.lower()} {self.winograd.name.lower()}"


@dataclass(frozen=True)
class Choice:
    """A convolution's algorithm, and why that one."""

    algorithm: Algorithm
    why: str


@dataclass(frozen=True)
class Convolution:
    """What a convolution's time depends on.

    Attributes:
        taps: 1 or 9.
        inputs, outputs: channels, with those that fill up panels.
        used: the inputs that a direct convolution needs to read: not those after the last.
        size: height and width.
        plan: storage type of the plan, for maps that only a convolution reads; else F32.
    """

    taps: int
    inputs: int
    outputs: int
    used: int
    size: int
    plan: Storage

    def __str__(self) -> str:
        side = 3 if self.taps == 9 else 1
        inputs = self.inputs if self.used == self.inputs else f"{self.used} of {self.inputs}"
        kind = "int8" if self.plan == Storage.U8 else self.plan.name.lower()
        return f"{kind} {side}x{side} {inputs} -> {self.outputs} at {self.size}x{self.size}"


_F32 = Algorithm(Storage.F32)
_F32_F4 = Algorithm(Storage.F32, Winograd.F4X4)
_BF16 = Algorithm(Storage.BF16)
_BF16_F2 = Algorithm(Storage.BF16, Winograd.F2X2)
_BF16_F4 = Algorithm(Storage.BF16, Winograd.F4X4)
_U8 = Algorithm(Storage.U8)

# Of each plan, those that are as precise as its type promises (docs/exactness.md): F(4x4) in bf16
# errs as much as int8, bf16 otherwise less.
_OF_PLAN = {
    Storage.F32: (_F32, _F32_F4),
    Storage.BF16: (_BF16, _BF16_F2),
    Storage.U8: (_U8, _BF16, _BF16_F2, _BF16_F4),
}


def candidates(c: Convolution) -> list[Algorithm]:
    """All ways to compute it, `static(c)` among them."""
    return [a for a in _OF_PLAN[c.plan] if _fits(c, a)]


def _fits(c: Convolution, a: Algorithm) -> bool:
    return a.winograd == Winograd.DIRECT or (c.taps == 9 and c.size % int(a.winograd) == 0)


def static_choice(c: Convolution) -> Choice:
    """`static`, as a choice."""
    return Choice(static(c), "static rule")


def static(c: Convolution) -> Algorithm:
    """The first guess, by sizes and the instruction set alone.

    Found on two cores with AVX-512 BF16 and with AVX2, for 32 to 256 channels, maps of 4 to 64
    pixels and 1 to 16 images; on other processors it may be wrong, which is why it is measured.
    That products on AMX's tiles are too fast for Winograd's transforms to pay is a guess.
    """
    if c.plan == Storage.U8:
        return _BF16_F4 if _suits_large_tiles(c) else _U8
    if c.plan == Storage.BF16:
        suits = _suits_winograd(c) and c.size % 2 == 0 and not cpu.has_tiles()
        return _BF16_F2 if suits else _BF16
    return _F32_F4 if _suits_winograd(c) and c.size % 4 == 0 and c.size >= 8 else _F32


def _suits_winograd(c: Convolution) -> bool:
    """Whether there are enough channels for fewer products to pay for transforms."""
    return c.taps == 9 and min(c.inputs, c.outputs) >= 32


def _suits_large_tiles(c: Convolution) -> bool:
    """Whether F(4x4, 3x3) in bf16 is faster than int8.

    Its weights take eight times the memory of those in int8: 64 tiles or more have to share them.
    """
    large = c.size % 4 == 0 and c.size >= 32
    return cpu.has_bfloat16() and large and _suits_winograd(c)
