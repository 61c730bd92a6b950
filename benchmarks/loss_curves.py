"""Whether our training follows the textbook's: two loss curves from the same weights and draws.

    python benchmarks/loss_curves.py --steps 300
    python benchmarks/loss_curves.py --steps 300 --reference PATH

trains the digits net with our trainer and, on the same batches, noise levels and noise, with the
textbook's loop (or the reference implementation's network in that loop), and then ours once more
from another seed. Printed are the losses' relative differences, step by step and as means over
windows of 25 steps; the difference between the seeds is the noise beside which they count.
"""

import argparse

import bench_train
import numpy as np
import torch

from autoguide_fast.trainer.options import TrainOptions
from autoguide_fast.trainer.trainer import Trainer

WINDOW = 25


class Listener:
    """A loss that keeps what it was last computed from: clean images, labels, levels, noise."""

    def __init__(self, loss):
        self.loss, self.heard = loss, None

    def __call__(self, net, images, labels, sigma, noise):
        self.heard = [t if t is None else t.clone() for t in (images, labels, sigma, noise)]
        return self.loss(net, images, labels, sigma=sigma, noise=noise)


def curves(options, steps, rivals=(), path=None):
    """Return the losses of our trainer and of each rival on the same draws, by name, [steps]."""
    trainer = Trainer(options)
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[options.precision]
    loops = {name: bench_train.rival_of(name, trainer, dtype, path) for name in rivals}
    trainer.loss = Listener(trainer.loss)
    losses: dict[str, list[float]] = {name: [] for name in ("ours", *rivals)}
    for _ in range(steps):
        losses["ours"].append(trainer.step())
        for name, loop in loops.items():
            losses[name].append(loop.train_on(*trainer.loss.heard))
    trainer.close()
    return {name: np.array(values) for name, values in losses.items()}


def windowed(losses):
    """Return the means of consecutive windows."""
    return losses[: len(losses) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(1)


def difference(one, other):
    """Return the largest and the mean relative difference of two curves."""
    relative = abs(one - other) / abs(other)
    return relative.max(), relative.mean()


def main():
    """Train, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--reference", metavar="PATH")
    args = parser.parse_args()
    if args.steps < WINDOW:
        parser.error(f"--steps must be >= {WINDOW}, got {args.steps}; raise it")
    torch.set_num_threads(2)
    shared = {
        "batch": args.batch,
        "duration": args.steps * args.batch,
        "precision": args.precision,
        "device": "cpu",
    }
    rivals = ("eager", "reference") if args.reference else ("eager",)
    found = curves(TrainOptions(**shared), args.steps, rivals, args.reference)
    found["another seed"] = curves(TrainOptions(**shared, seed=1), args.steps)["ours"]
    ours = found["ours"]
    print(
        f"loss, mean of the last {WINDOW} steps: "
        + ", ".join(f"{name} {windowed(c)[-1]:.5f}" for name, c in found.items())
    )
    for name in (*rivals, "another seed"):
        early, _ = difference(ours[:WINDOW], found[name][:WINDOW])
        steps, mean = difference(ours, found[name])
        windows, window_mean = difference(windowed(ours), windowed(found[name]))
        print(
            f"ours and {name}: per step at most {early:.1e} in the first {WINDOW}, {steps:.1e} "
            f"in all, {mean:.1e} on average; windows at most {windows:.1e}, {window_mean:.1e} "
            "on average"
        )


if __name__ == "__main__":
    main()
