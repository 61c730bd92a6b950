"""Peak memory of one contestant in a process of its own, so that figures do not mix.

    python benchmarks/memory.py ours sampling digits 16 float32

prints the bytes by which the resident memory of steady state exceeds that of the process before it
had any net. Building and compiling are not counted.
"""

import argparse
import ctypes
import re
import subprocess
import sys

from pinning import unpinned


def measured(name, task, net_name, batch, dtype, path, how):
    """Return the bytes of one contestant, see `contest`; None where the system cannot tell."""
    command = [sys.executable, __file__, name, task, net_name, str(batch), str(dtype).split(".")[1]]
    command += ["--reference", path] if path else []
    command += ["--how", how]
    with unpinned():
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"memory: {' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return int(run.stdout.split()[-1]) or None


def _status(field):
    with open("/proc/self/status") as file:
        found = re.search(rf"{field}:\s+(\d+)", file.read())
    assert found is not None
    return 1024 * int(found[1])


def _forget_peak():
    """Give back what was freed, and let the kernel's peak (VmHWM) start from what is left."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def main():
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("name", "task", "net_name"):
        parser.add_argument(argument)
    parser.add_argument("batch", type=int)
    parser.add_argument("dtype")
    parser.add_argument("--reference")
    parser.add_argument("--how")
    args = parser.parse_args()

    import contest
    import pairs
    import torch
    import torch._inductor.compile_fx  # a program that the contestants do not all load

    # Let the libraries allocate what they never free.
    torch.conv2d(torch.ones(1, 64, 64, 64), torch.ones(64, 64, 3, 3)) @ torch.ones(62, 62)
    baseline = _status("VmRSS")
    dtype = contest.DTYPES[args.dtype]
    with torch.no_grad():
        noise, labels = pairs.inputs(pairs.pair(args.net_name)[0], args.batch)
        if args.name == "ours":
            contestant = contest.ours(args.net_name, dtype)
        else:
            contestant = contest.rival(
                args.name, args.net_name, args.batch, dtype, args.reference, args.how
            )
        pairs.pair.cache_clear()  # a contestant keeps of the nets what it needs
        run = contest.TASKS[args.task](contestant, noise, labels)
        run()
        _forget_peak()
        run()
    print(_status("VmHWM") - baseline)


if __name__ == "__main__":
    main()
