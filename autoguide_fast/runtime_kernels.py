"""CUDA kernels compiled at first use, by NVRTC through CuPy, where nvcc did not compile them.

The operators launch the result themselves (csrc/cuda/launch.cpp), on torch's current stream and
without Python, so the launches can be captured in a CUDA graph once a kernel has been compiled.
CuPy keeps what it compiled in its cache on disk, `~/.cupy/kernel_cache`. It compiles with
`-ftz=true`: unlike nvcc's, these kernels take float32 values below 1.2e-38 for 0.
"""

import functools
import hashlib
import importlib.util
import sysconfig
import threading
from pathlib import Path

# Neither torch nor the extension up here: what writes the source is also run without them.

_modules: dict = {}  # keeps loaded kernels alive, by (kernel, types, device)
_lock = threading.Lock()


@functools.cache
def header_folder() -> Path:
    """Return the folder of the kernels' headers: beside the package's source, or in the package."""
    inside = Path(__file__).parent / "csrc"
    return inside if inside.is_dir() else inside.parents[1] / "csrc"


@functools.cache
def _digest() -> str:
    content = hashlib.sha256()
    for path in sorted([*header_folder().glob("*.h"), *(header_folder() / "cuda").glob("*.*h")]):
        content.update(path.read_bytes())
    return content.hexdigest()


def source(kernel: str, types: str) -> tuple[str, str]:
    """Return the CUDA source of one kernel, and the name of its function.

    Args:
        kernel: its name in csrc/cuda/kernels.h.
        types: what it is a template of, as in C++: "float, __half".
    """
    symbol = f"agf_{kernel}_{types.replace(', ', '_')}"
    # The digest makes CuPy's cache on disk notice a change of the headers.
    return symbol, (
        f"// {_digest()}\n"
        '#include "cuda/kernels.cuh"\n'
        'extern "C" __global__ void\n'
        "__launch_bounds__(agf::cuda::kThreads, agf::cuda::kBlocks)\n"
        f"{symbol}(const agf::cuda::{kernel} kernel) {{ kernel.run<{types}>(); }}\n"
    )


def options() -> tuple[str, ...]:
    """Return NVRTC's options: the language, and where headers are, of a toolkit or of wheels."""
    folders = [header_folder()]
    packages = Path(sysconfig.get_path("purelib"))
    folders += sorted(packages.glob("nvidia/*/include"))
    folders.append(Path("/usr/local/cuda/include"))
    # What the host calls in the headers is compiled for the device too, and not used.
    start = ("--std=c++17", "--device-as-default-execution-space")
    return (*start, *(f"-I{folder}" for folder in folders if folder.is_dir()))


def load(kernel: str, types: str, device: int) -> int:
    """Return the handle of a kernel on a device, after compiling it if need be.

    Args:
        kernel, types: as for `source`.
        device: index of the CUDA device.

    Returns:
        A `CUfunction` as an int; it stays valid while the process lives.

    Raises:
        RuntimeError: there is no CuPy.
    """
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(
            "autoguide_fast: CUDA kernels must be compiled by nvcc when it is built, or by CuPy "
            f"when they are used, got neither ({error}); {_remedy()}"
        ) from None
    with _lock:
        key = kernel, types, device
        if key not in _modules:
            symbol, text = source(kernel, types)
            with cupy.cuda.Device(device):
                module = cupy.RawModule(code=text, options=options())
                _modules[key] = module.get_function(symbol)
                _modules[key].compile()
        with cupy.cuda.Device(device):
            return _modules[key].kernel.ptr


def route(architectures: str | None) -> str:
    """Return in words how CUDA kernels are compiled here, or why they are not.

    `architectures` are those for which nvcc compiled them, of `build_info()`.
    """
    import torch

    if architectures:
        return f"compiled by nvcc for sm_{', sm_'.join(architectures.split(';'))}"
    if torch.version.cuda is None:
        return "none: this torch is a CPU build"
    if importlib.util.find_spec("cupy") is None:
        return f"none: {_remedy()}"
    return "compiled by NVRTC at first use, through CuPy"


def _remedy() -> str:
    import torch

    major = (torch.version.cuda or "13").split(".")[0]
    return (
        f"run `pip install 'autoguide_fast[cuda{major}]'`, or build it again where nvcc and this "
        "torch are"
    )
