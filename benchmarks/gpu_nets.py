"""Races whole guided samplings on a CUDA device: ours, eager PyTorch, `torch.compile`, reference.

    python benchmarks/gpu_nets.py FOLDER [--reference PATH] [--seconds 240] [--compile]

writes FOLDER/<device>-nets.json and FOLDER/<device>-nets.md after each race. Each row is a process
of its own (gpu_row.py), in which all contestants take turns; `torch.compile`, which may take
minutes, gets the time that is left at the end, and a row in which only ours runs beside it. With
`--compile` it gets all of it, in files of their own, `-nets-compile`. Weights are random with gains
that are not zero; times are those that a caller waits.

`--device cpu --tiny` races a small pair on the CPU, to see that the script works.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import gpu_ops
import torch

ROW = Path(__file__).with_name("gpu_row.py")
# Pair, batch, steps: the most important first. The largest does fewer steps, all of them alike.
ROWS = [("s-xs", 1, 32), ("s-xs", 64, 32), ("xxl-m", 16, 8), ("s-xs", 8, 32), ("xxl-m", 1, 32)]
TINY = [("tiny", 1, 4), ("tiny", 4, 4)]
ROW_SECONDS = 90  # at most, of a row without torch.compile


def run_row(args, row, contestants, limit, first):
    """Run one row; return its figures, or why there are none: `failed`, or `unfinished`."""
    pair, batch, steps = row
    seconds = min(10.0, limit / 6)
    command = [sys.executable, str(ROW), pair, str(batch), "--steps", str(steps)]
    command += ["--device", args.device, "--contestants", ",".join(contestants)]
    command += ["--seconds", str(seconds)]
    if args.reference:
        command += ["--reference", args.reference]
    if first:
        command += ["--started", str(time.time())]
    facts = {"pair": pair, "batch": batch, "steps": steps}
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        output, error = run.stdout, run.stderr.strip().split("\n")[-1]
        why = {"failed": error} if run.returncode else {}
    except subprocess.TimeoutExpired as stopped:
        output = stopped.stdout or ""
        output = output if isinstance(output, str) else output.decode()
        why = {"unfinished": f"{', '.join(contestants)}: not done in {limit:.0f} s"}
    # Each line is complete, but the last of a process that was stopped.
    lines = [line for line in output.split("\n")[:-1] if line.startswith("{")]
    return {**facts, **(json.loads(lines[-1]) if lines else {}), **why}


def table(facts):
    """Return the figures as Markdown."""
    on, most = facts["machine"], facts["ceilings"]
    lines = [
        *gpu_ops.heading(on),
        "Ceilings: " + ", ".join(f"{key} {value:.0f}" for key, value in most.items()) + ".",
        "",
        "| pair | batch | steps | contestant | s | images/s in 32 steps | x ours | TFLOP/s | of "
        "fp16 matmul | GiB | error | first image, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    ceiling = most.get("float16_tflop_per_second")
    for row in facts["rows"]:
        start = f"| {row['pair']} | {row['batch']} | {row['steps']} | "
        why = row.get("failed") or row.get("unfinished")
        if why:
            lines.append(f"{start}{why} |" + " |" * 8)
        for name, entry in row.get("contestants", {}).items():
            if "median" not in entry:
                lines.append(f"{start}{name}: {entry.get('failed', 'not raced')} |" + " |" * 8)
                continue
            share = f"{entry['tflop_per_second'] / ceiling:.0%}" if ceiling else ""
            memory = f"{entry['bytes'] / 2**30:.1f}" if "bytes" in entry else ""
            first = row.get("first_image_seconds", "") if name.startswith("ours") else ""
            # All evaluations cost alike: 63 of them in 32 steps.
            rate = row["batch"] / entry["median"] * (2 * row["steps"] - 1) / 63
            ratio = f"{entry['over_ours']:.2f}" if entry["over_ours"] else ""
            lines.append(
                start + f"{name} | {entry['median']:.4g} | {rate:.4g} | "
                f"{ratio} | {entry['tflop_per_second']:.1f} | {share} | {memory} | "
                f"{entry['error']:.1e} | {first and f'{first:.1f}'} |"
            )
    return "\n".join(lines) + "\n"


def cpu():
    """Return what the figures were taken on, without a GPU."""
    return {
        "device": "cpu",
        "driver": "none",
        "torch": torch.__version__,
        "kernels": "the CPU's",
        "command": gpu_ops.command(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reference", metavar="PATH", help="a checkout of the EDM2 reference")
    parser.add_argument("--seconds", type=float, default=240, help="of everything")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true", help="race torch.compile alone")
    parser.add_argument("--tiny", action="store_true", help="small nets in float32")
    args = parser.parse_args()
    stop = time.perf_counter() + args.seconds
    args.folder.mkdir(parents=True, exist_ok=True)
    cuda = args.device.startswith("cuda")
    facts = {
        "machine": gpu_ops.machine(args.device) if cuda else cpu(),
        "ceilings": gpu_ops.ceilings(torch.device(args.device)) if cuda else {},
        "rows": [],
    }
    if cuda:
        torch.cuda.empty_cache()
    slug = re.sub(r"\W+", "-", facts["machine"]["device"]).strip("-").lower()
    ours = ["ours-float32"] if args.tiny else ["ours-float16"]
    rivals = ["eager", *(["reference"] if args.reference else [])]
    if cuda and not args.tiny:
        fp8 = torch.cuda.get_device_capability(args.device) >= (8, 9)
        rivals = ["ours-float16-swapped", *(["ours-float8_e4m3fn"] if fp8 else []), *rivals]
    rows = TINY if args.tiny else ROWS
    limit = args.seconds if args.tiny else ROW_SECONDS
    races = [] if args.compile else [(row, ours + rivals, limit) for row in rows]
    if cuda or args.compile:
        races += [(row, [*ours, "compile"], args.seconds) for row in rows]
    name = f"{slug}-nets-compile" if args.compile else f"{slug}-nets"
    for number, (row, contestants, limit) in enumerate(races):
        left = stop - time.perf_counter()
        if left > 10:
            first = number == 0 and not args.compile
            found = run_row(args, row, contestants, min(limit, left), first)
        else:
            found = dict(zip(("pair", "batch", "steps"), row, strict=True))
            found["unfinished"] = f"{', '.join(contestants)}: no time left"
        facts["rows"].append(found)
        (args.folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
        (args.folder / f"{name}.md").write_text(table(facts))
    print(table(facts))
    entries = [e for row in facts["rows"] for e in (row, *row.get("contestants", {}).values())]
    sys.exit(any("failed" in entry for entry in entries))


if __name__ == "__main__":
    main()
