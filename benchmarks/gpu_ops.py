"""Races every fused operator on a CUDA device: ours, eager PyTorch, `torch.compile` of the same.

    python benchmarks/gpu_ops.py FOLDER [SECONDS]

writes FOLDER/<device>-ops.json and FOLDER/<device>-ops.md, of what there was time for. Sizes are
those of EDM2-S (192 channels at 64x64), float16, channels-last. Each contestant is captured in a
CUDA graph of many calls, on buffers that rotate past the L2 cache, so what is timed is the device
and not Python; the time of a call from Python stands beside it. GB/s counts each input read once
and each output written once.
"""

import json
import math
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from autoguide_fast import ops, runtime_kernels
from autoguide_fast._extension import build_info

CHANNELS, SIZE, BATCHES = 192, 64, (64, 1, 8)
DTYPE = torch.float16
ROUNDS, WARMUP = 20, 3
TOLERANCE = 2e-3  # of the largest magnitude: two roundings of float16
LARGE = 8192  # the matrix product's side
COPY = 1 << 30  # bytes of the large copy


def cases(batch, device):
    """Return what to race: by name, a function that draws the operator's arguments."""

    def image(channels=CHANNELS):
        x = torch.randn(batch, channels, SIZE, SIZE, device=device, dtype=DTYPE)
        return x.contiguous(memory_format=torch.channels_last)

    def state():
        return torch.randn(batch, 4, SIZE, SIZE, device=device)

    def raw():
        return state().to(DTYPE)

    def level(value):
        return torch.tensor(value, device=device, dtype=torch.float64)

    levels = level(3.0), level(2.0), level(1.7)
    weights = torch.randn(batch, 3, device=device, dtype=torch.float64)
    return {
        "normalize": lambda: (image(), 1),
        "mp_silu": lambda: (image(),),
        "modulate_mp_silu": lambda: (image(), torch.randn_like(image()[:, :, 0, 0])),
        "mp_sum": lambda: (image(), image(), 0.3, 256.0),
        "mp_cat": lambda: (image(), image(), 0.5),
        "mp_cat_mp_silu": lambda: (image(), image(), 0.5),
        "resample": lambda: (image(), "down"),
        "resample_normalize_mp_silu": lambda: (image(), "down"),
        "attention_split": lambda: (image(3 * CHANNELS), CHANNELS // 64),
        "mp_weight": lambda: (torch.randn(768, 768, 3, 3, device=device), 1.0, DTYPE),
        "combine": lambda: (weights, state(), state(), state()),
        "inner_products": lambda: (state(), state(), state()),
        "guided_heun_first": lambda: (state(), raw(), raw(), *levels, 0.5),
        "guided_heun_second": lambda: (state(), state(), state(), raw(), raw(), *levels, 0.5),
    }


def tensors(values):
    """Return the tensors among `values`, or in a lone one."""
    values = values if isinstance(values, tuple) else (values,)
    return [value for value in values if isinstance(value, torch.Tensor)]


def check(name, value, expected):
    """Assert that a result is the reference's, within the rounding of its type."""
    for ours, theirs in zip(tensors(value), tensors(expected), strict=True):
        ours, theirs = ours.double(), theirs.double()
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        assert error < TOLERANCE, f"{name} is off by {error:.2g}"


def captured(function, copies):
    """Return a CUDA graph that calls `function` on each of `copies`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for arguments in copies[:WARMUP]:
            function(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [function(*arguments) for arguments in copies]  # no buffer is used twice
    return graph, kept


def device_time(run):
    """Return the milliseconds that the device takes for `run()`."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def call_time(function, arguments, count=200):
    """Return the microseconds of a call as Python sees it, the device keeping up or not."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        function(*arguments)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / count * 1e6


def race(name, batch, device):
    """Return the figures of one operator at one batch size."""
    make = cases(batch, device)[name]
    function, reference = getattr(ops, name), getattr(ops, f"{name}_reference")
    torch._dynamo.reset()
    contestants = {
        "ours": function,
        "eager": reference,
        "compile": torch.compile(
            reference, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs"
        ),
    }
    arguments = make()
    exact = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    exact = [None if a is DTYPE else a for a in exact]  # mp_weight's result is not rounded here
    expected = reference(*exact)
    for contestant in contestants.values():
        check(name, contestant(*arguments), expected)
    result = function(*arguments)
    size = sum(t.nbytes for t in (*tensors(arguments), *tensors(result)))
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    copies = [make() for _ in range(min(64, max(2, math.ceil(4 * cache / size))))]
    graphs = {key: captured(contestant, copies) for key, contestant in contestants.items()}
    times: dict[str, list[float]] = {key: [] for key in graphs}
    for _ in range(WARMUP + ROUNDS):
        for key, (graph, _) in graphs.items():
            times[key].append(device_time(graph.replay) / len(copies) * 1e3)
    median = {key: statistics.median(values[WARMUP:]) for key, values in times.items()}
    return {
        "op": name,
        "batch": batch,
        "bytes": size,
        "microseconds": median,
        "call_microseconds": {
            key: call_time(contestant, arguments) for key, contestant in contestants.items()
        },
        "gbytes_per_second": size / median["ours"] / 1e3,
    }


def median_time(run):
    """Return the median milliseconds of `run()` over rounds."""
    return statistics.median([device_time(run) for _ in range(WARMUP + ROUNDS)][WARMUP:])


def ceilings(device):
    """Return what the device reaches at most: a large copy in GB/s, matrix products in TFLOP/s."""
    source = torch.empty(COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = {"copy_gbytes_per_second": 2 * COPY / median_time(lambda: target.copy_(source)) / 1e6}
    flop = 2 * LARGE**3
    for dtype in (torch.bfloat16, torch.float16):
        a, b = torch.randn(2, LARGE, LARGE, device=device, dtype=dtype).unbind(0)
        key = f"{str(dtype).removeprefix('torch.')}_tflop_per_second"
        found[key] = flop / median_time(lambda a=a, b=b: a @ b) / 1e9
    if torch.cuda.get_device_capability(device) >= (8, 9):
        a = torch.randn(LARGE, LARGE, device=device).to(torch.float8_e4m3fn)
        one = torch.ones((), device=device)
        run = lambda: torch._scaled_mm(a, a.t(), one, one, out_dtype=torch.bfloat16)  # noqa: E731
        found["float8_e4m3fn_tflop_per_second"] = flop / median_time(run) / 1e9
    return found


def machine(device):
    """Return what the figures were taken on."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
    return {
        "device": torch.cuda.get_device_name(device),
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "kernels": runtime_kernels.route(build_info().get("cuda_architectures")),
        "command": command(),
    }


def command():
    """Return the command that this process was started with."""
    return shlex.join(["python", *sys.argv])


def heading(machine):
    """Return what a table of figures begins with."""
    m = machine
    return [
        f"{m['device']}, driver {m['driver']}, torch {m['torch']}, kernels {m['kernels']}.",
        f"`{m['command']}`.",
    ]


def table(facts):
    """Return the figures as Markdown."""
    on, most = facts["machine"], facts["ceilings"]
    lines = [
        *heading(on),
        "Ceilings: " + ", ".join(f"{key} {value:.0f}" for key, value in most.items()) + ".",
        "",
        "| op | batch | µs | x eager | x compile | GB/s | of copy | µs a call | x eager |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in facts["rows"]:
        if "failed" in row:
            lines.append(f"| `{row['op']}` | {row['batch']} | {row['failed']} |" + " |" * 6)
            continue
        t, call = row["microseconds"], row["call_microseconds"]
        rate = row["gbytes_per_second"]
        lines.append(
            f"| `{row['op']}` | {row['batch']} | {t['ours']:.1f} | {t['eager'] / t['ours']:.2f} | "
            f"{t['compile'] / t['ours']:.2f} | {rate:.0f} | "
            f"{rate / most['copy_gbytes_per_second']:.0%} | {call['ours']:.1f} | "
            f"{call['eager'] / call['ours']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main():
    """Race everything, and write the figures down after each race: a lease may end any time."""
    folder = Path(sys.argv[1])
    stop = time.perf_counter() + float(sys.argv[2]) if len(sys.argv) > 2 else math.inf
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda")
    facts = {"machine": machine(device), "ceilings": ceilings(device), "rows": []}
    slug = re.sub(r"\W+", "-", facts["machine"]["device"]).strip("-").lower()
    for batch in BATCHES:
        for name in cases(batch, device):
            if time.perf_counter() > stop:
                continue
            try:
                row = race(name, batch, device)
            except Exception as error:  # the others are raced all the same
                row = {"op": name, "batch": batch, "failed": str(error).split("\n")[0]}
            facts["rows"].append(row)
            (folder / f"{slug}-ops.json").write_text(json.dumps(facts, indent=1) + "\n")
            (folder / f"{slug}-ops.md").write_text(table(facts))
    print(table(facts))
    sys.exit(any("failed" in row for row in facts["rows"]))


if __name__ == "__main__":
    with torch.no_grad():
        main()
