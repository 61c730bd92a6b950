"""The content of many tensors as 128 bits.

Every bit and its place counts: of two nets that differ, however they do, no more than one pair in
2^66 has one digest. Nobody is kept from making such a pair on purpose.
"""

import functools
from collections.abc import Sequence

import numpy
import torch
import xxhash
from torch import Tensor

# Elements whose sum has one factor each, and that lie side by side in memory once more at a time.
_ROW, _GROUP = 1 << 16, 1 << 24


def digest(tensors: Sequence[Tensor]) -> bytes:
    """The 128 bits of the content of float32 `tensors`, of one device, in order; a `bytes`.

    That two lists have tensors of the same shapes has to be known. Strides do not matter. Of a
    GPU's tensors only sums come to the host, which it has computed itself.
    """
    total = xxhash.xxh3_128()
    for t in tensors if all(t.device.type == "cpu" for t in tensors) else [sums(tensors)]:
        total.update(numpy.ascontiguousarray(t.numpy(force=True)).data)
    return total.digest()


def sums(tensors: Sequence[Tensor]) -> Tensor:
    """Sums of rows of 2^16 elements, int64 `[rows, 2]`, for float32 `tensors` of one device.

    Each is `sum_i factor_i bits_i` modulo 2^64, with the element's bits as an int32 and constant
    random factors. (Where bits differ in the sign alone, 33 bits of a factor matter, which is the
    fewest, so two sums are made.)
    """
    pieces = [piece for t in tensors for piece in t.detach().flatten().split(_GROUP)]
    factors = _factors(pieces[0].device)
    found: list[Tensor] = []
    while pieces:
        count, length = 1, len(pieces[0])
        while count < len(pieces) and length + len(pieces[count]) <= _GROUP:
            length += len(pieces[count])
            count += 1
        group = torch.cat([*pieces[:count], pieces[0].new_zeros(-length % _ROW)])
        rows = group.view(torch.int32).view(-1, _ROW)
        found.append(torch.stack([(rows * factor).sum(dim=1) for factor in factors], dim=1))
        del pieces[:count]
    return torch.cat(found)


@functools.lru_cache(8)
def _factors(device: torch.device) -> Tensor:
    """int64 `[2, row]`, the same everywhere."""
    generator = torch.Generator("cpu").manual_seed(0)
    info = torch.iinfo(torch.int64)
    factors = torch.randint(
        info.min, info.max, (2, _ROW), generator=generator, dtype=torch.int64, device="cpu"
    )
    return factors.to(device)
