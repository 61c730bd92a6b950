"""Races one guided sampling, in a process of its own: one pair of nets at one batch size.

    python benchmarks/gpu_row.py tiny 4 --device cpu --contestants ours-float32,eager

prints its figures as JSON in the last line, and after each round what it has so far. A contestant
that fails is left out, with its reason. `gpu_nets.py` runs it for the published sizes.
"""

import argparse
import importlib
import json
import statistics
import sys
import time

import pairs
import rivals
import torch

from autoguide_fast import Engine
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.textbook import TextbookPrecond

GUIDANCE = 2.0
MAX_ROUNDS = 9
# Root mean square of the difference over that of the textbook in float32, after one evaluation.
TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "float8_e4m3fn": 2e-1}


def _edm2(width):
    return {"img_resolution": 64, "img_channels": 4, "label_dim": 1000, "model_channels": width}


# The widths of EDM2's S, XS, XXL and M.
PAIRS = {
    "s-xs": (_edm2(192), _edm2(128)),
    "xxl-m": (_edm2(448), _edm2(256)),
    "tiny": tuple(
        {
            "img_resolution": 16,
            "img_channels": 1,
            "label_dim": 10,
            "model_channels": width,
            "channel_mult": [1, 2],
            "num_blocks": 1,
            "attn_resolutions": [8],
        }
        for width in (32, 16)
    ),
}


def random_net(options, device):
    """A net with random weights, and all gains away from zero so that all of it matters."""
    with torch.device(device):
        return pairs.random_net(options).requires_grad_(False)


class Reference:
    """The reference implementation's networks under its own sampler."""

    def __init__(self, path, model, guide):
        self.pair = rivals.reference(path, model, guide)
        self.model = self.pair.model
        self.sampler = importlib.import_module("generate_images").edm_sampler

    def sample(self, guidance, class_labels, noise, num_steps, raw):
        return self.sampler(
            self.pair.model,
            noise,
            class_labels,
            self.pair.guide,
            num_steps=num_steps,
            guidance=guidance,
        )


def compiled(model, guide):
    """The textbook pair under `torch.compile` at its best: weights frozen, CUDA graphs."""

    def compile_one(net):
        module = TextbookPrecond(net)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        run = torch.compile(
            lambda x, sigma, labels: module(x, sigma, labels).float(),
            fullgraph=True,
            dynamic=False,
            mode="max-autotune",
        )

        def call(x, sigma, labels):
            torch.compiler.cudagraph_mark_step_begin()
            with torch._inductor.config.patch(freezing=True):
                return run(x, sigma, labels).clone()

        return call

    return rivals.Pair(compile_one(model), compile_one(guide))


def contestant(name, model, guide, path):
    """Return a contestant with `model` and `sample` as `Engine` has them.

    `ours-TYPE` is the engine; with `-swapped` at its end, one whose nets run beside each other
    exactly where the engine would not let them.
    """
    if name == "eager":
        return rivals.eager(model, guide)
    if name == "compile":
        return compiled(model, guide)
    if name == "reference":
        return Reference(path, model, guide)
    _, dtype, *swapped = name.split("-")
    engine = Engine(model, guide, dtype=getattr(torch, dtype))
    if swapped:
        gpu_engine = engine._engine
        if not isinstance(gpu_engine, GpuEngine):
            raise ValueError("gpu_row: swapped contestants must be on a GPU, got one on the CPU")
        rule = gpu_engine._overlaps
        gpu_engine._overlaps = lambda batch: not rule(batch)  # type: ignore[method-assign]
    return engine


def race(args, started):
    """Race the row that the command line names; print its figures after each round."""
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    torch.manual_seed(0)
    model, guide = (random_net(options, device) for options in PAIRS[args.pair])
    names = args.contestants.split(",")
    size = model.img_resolution
    noise = torch.randn(args.batch, model.img_channels, size, size).to(device)
    labels = torch.eye(model.label_dim)[torch.arange(args.batch) % model.label_dim].to(device)
    options = {"guidance": GUIDANCE, "raw": True}
    figures = {"pair": args.pair, "batch": args.batch, "steps": args.steps, "contestants": {}}

    made, taken, before = {}, {}, memory(cuda)
    if started:
        made[names[0]] = contestant(names[0], model, guide, args.reference)
        one = made[names[0]].sample(
            class_labels=labels[:1], noise=noise[:1], num_steps=args.steps, **options
        )
        figures["first_image_seconds"] = time.time() - started
        assert torch.isfinite(one).all(), "the first image is not finite"
        taken[names[0]] = torch.cuda.memory_reserved() - before if cuda else 0

    sigma, x = torch.tensor(1.5, device=device), noise * 1.6
    evaluation = x[:1], sigma, labels[:1]
    textbooks = rivals.eager(model, guide)
    expected = textbooks.model(x, sigma, labels)
    work = sum(rivals.gflop(net, *evaluation) for net in (textbooks.model, textbooks.guide))
    figures["gflop"] = work * args.batch * (2 * args.steps - 1)
    model.use_fp16 = guide.use_fp16 = True  # of the rivals, on a GPU
    weights = sum(p.nbytes for net in (model, guide) for p in net.parameters())

    def prepare(name):
        before = memory(cuda)
        rival = made.pop(name, None) or contestant(name, model, guide, args.reference)
        value = rival.model(x, sigma, labels).float()
        error = float((value - expected).norm() / expected.norm())
        dtype = name.split("-")[1] if name.startswith("ours") else "float16" if cuda else "float32"
        assert error < TOLERANCES[dtype], f"{name} is off by {error:.2g}"
        # What ours records depends on the number of steps; the others know no such thing.
        steps = args.steps if name.startswith("ours") else 2
        rival.sample(class_labels=labels, noise=noise, num_steps=steps, **options)
        wait()
        entry = {"error": error, "seconds": []}
        if cuda:
            # The engine needs the networks no more, the textbook and what is compiled share them.
            own = weights if name in ("eager", "compile") else 0
            entry["bytes"] = own + taken.get(name, torch.cuda.memory_reserved() - before)
        return rival, entry

    running = {}
    for name in names:
        try:
            running[name], figures["contestants"][name] = prepare(name)
        except Exception as error:  # the others are raced all the same
            first = str(error).strip().split("\n")[0]
            figures["contestants"][name] = {"failed": f"{type(error).__name__}: {first}"}

    stop, rounds = time.perf_counter() + args.seconds, 0
    while rounds < 2 or (rounds < MAX_ROUNDS and time.perf_counter() < stop):
        for name, rival in running.items():
            wait()
            start = time.perf_counter()
            rival.sample(class_labels=labels, noise=noise, num_steps=args.steps, **options)
            wait()
            figures["contestants"][name]["seconds"].append(time.perf_counter() - start)
        rounds += 1
        summarise(figures, names[0])
    if cuda and names[0] in running:
        # Between the convolutions lies what a fused epilogue could save at most.
        figures["profile"] = str(running[names[0]].profile(args.batch, repeats=5)).split("\n")
        summarise(figures, names[0])


def memory(cuda):
    """Return the bytes that torch keeps on the device, after giving back what nobody uses."""
    if not cuda:
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def summarise(figures, ours):
    """Add medians and ratios to the figures so far, and print them."""
    contestants = figures["contestants"]
    for entry in contestants.values():
        if "failed" in entry:
            continue
        entry["median"] = statistics.median(entry["seconds"])
        entry["tflop_per_second"] = figures["gflop"] / entry["median"] / 1e3
        pairs = zip(entry["seconds"], contestants[ours].get("seconds", ()), strict=False)
        ratios = [theirs / mine for theirs, mine in pairs]
        entry["over_ours"] = statistics.median(ratios) if ratios else None
    print(json.dumps(figures), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", choices=PAIRS)
    parser.add_argument("batch", type=int)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--contestants", required=True, help="ours first")
    parser.add_argument("--reference", metavar="PATH")
    parser.add_argument("--seconds", type=float, default=10, help="of the rounds")
    parser.add_argument("--started", type=float, help="when this process was started, Unix time")
    args = parser.parse_args()
    if args.reference:
        sys.path.insert(0, args.reference)
    with torch.no_grad():
        race(args, args.started)


if __name__ == "__main__":
    main()
