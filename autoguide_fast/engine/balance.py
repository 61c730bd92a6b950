"""How evenly any number of threads would share an evaluation, without having them.

What is counted is products: it bounds how much faster many threads can be than one, whatever
transforms that several of them make, memory and waiting cost beside.
"""

from __future__ import annotations

from .prepared import PreparedNet
from .profile import Label


def balance(net: PreparedNet, images: int, threads: int) -> list[tuple[Label, float]]:
    """Of each instruction, the mean share of a team's threads over the longest one; 1 is even.

    Args:
        net: on the CPU.
        images: of the batch.
        threads: that share it.
    """
    _, members = net.lowered.plan.teams(images, threads)
    shares = net.lowered.plan.shares(_rounds(net, images, threads)[0], members)
    found = [sum(each) / members / max(each) for each in shares]
    return list(zip(net.lowered.names, found, strict=True))


def efficiency(net: PreparedNet, images: int, threads: int) -> float:
    """The speed of `threads` threads over that of one, by their number, at most.

    As `balance`, of all convolutions and attentions together, and of all teams.
    """
    plan, flops = net.lowered.plan, net.lowered.flops
    _, members = plan.teams(images, threads)
    longest = 0.0
    for together in _rounds(net, images, threads):
        for each, flop in zip(plan.shares(together, members), flops, strict=True):
            longest += together * flop * max(each) / sum(each)
    return images * sum(flops) / (threads * longest)


def _rounds(net: PreparedNet, images: int, threads: int) -> list[int]:
    """Images that the team with the most takes through the plan together, time after time."""
    teams, _ = net.lowered.plan.teams(images, threads)
    left, chunk = -(-images // teams), net.chunk(images, threads)
    return [min(chunk, left - first) for first in range(0, left, chunk)]
