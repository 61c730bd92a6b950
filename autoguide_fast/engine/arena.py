"""Where feature maps lie in the arena: lifetimes do not overlap where bytes do."""

from collections.abc import Sequence

from .._C import ALIGNMENT


def place(blocks: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Choose offsets so that blocks alive at the same time do not overlap.

    Args:
        blocks: of each its bytes, and the first and the last instruction that uses it.

    Returns:
        `(offsets, total)` in bytes.

    Largest first, each into the smallest gap that holds it among those alive with it: within a few
    per cent of the peak of live bytes for U-Nets.
    """
    offsets = [0] * len(blocks)
    placed: list[tuple[int, int, int, int]] = []
    for i in sorted(range(len(blocks)), key=lambda i: (-blocks[i][0], blocks[i][1])):
        size, first, last = blocks[i]
        size = -(-size // ALIGNMENT) * ALIGNMENT
        beside = sorted(
            (start, end)
            for start, end, other_first, other_last in placed
            if first <= other_last and other_first <= last
        )
        best: tuple[int, int] | None = None  # gap and where it begins
        cursor = 0
        for start, end in beside:
            gap = start - cursor
            if gap >= size and (best is None or gap < best[0]):
                best = gap, cursor
            cursor = max(cursor, end)
        offset = cursor if best is None else best[1]
        offsets[i] = offset
        placed.append((offset, offset + size, first, last))
    return offsets, max((end for _, end, _, _ in placed), default=0)
