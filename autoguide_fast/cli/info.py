"""`autoguide-fast info`: what was built, what was chosen, and what is there to run on."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Add `info` to the command line."""
    parser = subparsers.add_parser(
        "info",
        help="versions, build, instruction set, ops and devices",
        description="Show versions, how the extension was built, what it chose, and devices.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def collect() -> dict:
    """Return everything that `info` shows, ready for JSON."""
    import numpy
    import torch

    from .. import kept_choices, runtime_kernels
    from .._extension import build_info

    build = dict(build_info())
    return {
        "autoguide_fast": build.get("version"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_built_with": build.get("torch_built_with"),
        "torch_oldest": build.get("torch_oldest"),
        "torch_tested": build.get("torch_tested"),
        "numpy": numpy.__version__,
        "pybind11": build.get("pybind11"),
        "build_type": build.get("build_type"),
        "compiler": build.get("compiler"),
        "cuda": build.get("cuda"),
        "cuda_architectures": build.get("cuda_architectures"),
        "cuda_kernels": runtime_kernels.route(build.get("cuda_architectures")),
        "isa": build.get("isa"),
        "isa_available": build.get("isa_available"),
        "amx": build.get("amx"),
        "threads": torch.get_num_threads(),
        "autotune": kept_choices.enabled(),
        "cache": str(kept_choices.folder() or ""),
        "ops": registered_ops(),
        "devices": _devices(),
    }


def registered_ops() -> list[str]:
    """Return the names of the ops that the extension has registered with PyTorch, sorted."""
    import torch

    import autoguide_fast.ops  # noqa: F401  registers them

    names = torch._C._dispatch_get_all_op_names()
    prefix = "autoguide_fast::"
    return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def run(arguments: argparse.Namespace) -> None:
    """Print the facts, for people or as JSON."""
    facts = collect()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    ops, devices = facts["ops"], facts["devices"]
    rows = [
        ("autoguide_fast", facts["autoguide_fast"]),
        ("python", facts["python"]),
        ("torch", f"{facts['torch']} (built against {facts['torch_built_with']})"),
        ("torch tested with", f"{facts['torch_oldest']} to {facts['torch_tested']}"),
        ("numpy", facts["numpy"]),
        ("pybind11", facts["pybind11"]),
        ("build", f"{facts['build_type']}, {facts['compiler']}"),
        ("CUDA", facts["cuda"]),
        ("CUDA architectures", _join(facts["cuda_architectures"]) or "none: built without CUDA"),
        ("CUDA kernels", facts["cuda_kernels"]),
        ("instruction set", f"{facts['isa']} (available: {_join(facts['isa_available'])})"),
        ("AMX", facts["amx"]),
        ("threads", facts["threads"]),
        ("algorithms", "measured" if facts["autotune"] else "static rules (AGF_AUTOTUNE=0)"),
        ("kept in", facts["cache"] or "no folder"),
        ("devices", devices[0]),
        *(("", device) for device in devices[1:]),
        (f"ops ({len(ops)})", ops[0] if ops else "none"),
        *(("", name) for name in ops[1:]),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value if value not in (None, '') else 'unknown'}")


def _join(value: str | Sequence[str] | None) -> str:
    """Show a list, or a string that already is one, as words."""
    return value if isinstance(value, str) else ", ".join(map(str, value or ()))


def _devices() -> list[str]:
    """Return the devices that torch sees, the CPU first."""
    import torch

    devices = [f"cpu ({platform.machine()})"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        devices.append(
            f"cuda:{index} ({facts.name}, {facts.total_memory / 2**30:.0f} GiB, "
            f"compute capability {facts.major}.{facts.minor})"
        )
    return devices
