"""Builds the simulator of CUDA kernels (tests/simt) and puts it behind the operators."""

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from autoguide_fast import _C

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "tests" / "simt"
# Set by the test that runs the kernels under AddressSanitizer, for the process that it starts.
FLAGS = os.environ.get("AGF_SIMULATOR_FLAGS", "").split()


@functools.cache
def cuda_headers():
    """Return the folder of NVIDIA's headers, of a toolkit or of the PyPI wheel, or None."""
    toolkit = shutil.which("nvcc")
    folders = [Path(toolkit).resolve().parents[1] / "include"] if toolkit else []
    folders.append(Path("/usr/local/cuda/include"))
    folders += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/include"))
    return next((f for f in folders if (f / "cuda_fp16.h").is_file()), None)


@functools.cache
def why_not():
    """Return why the simulator cannot be built here, or None."""
    if shutil.which("g++") is None:
        return "no g++ to compile the simulator of CUDA kernels with"
    if cuda_headers() is None:
        return "no cuda_fp16.h: install a CUDA toolkit, or the package nvidia-cuda-runtime"
    return None


@functools.cache
def build(source, flags=()):
    """Compile tests/simt/`source` into a shared library; return its path."""
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing"]
    command += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", *flags]
    command += [f"-I{SOURCES}", f"-I{ROOT / 'csrc'}", "-isystem", str(cuda_headers())]
    # Kept between runs: one library per content of what it is made of.
    content = hashlib.sha256(repr(command).encode())
    for path in sorted([*SOURCES.iterdir(), *ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*.*h")]):
        content.update(path.read_bytes())
    library = ROOT / "build" / f"simt-{source}-{content.hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, str(SOURCES / source), "-o", str(unfinished)], check=True)
        unfinished.rename(library)
    return library


@functools.cache
def kernels():
    """Return the library of all kernels, with `agf_seed(seed)` for the order of threads and
    `agf_only(block)` for a grid of which one block is to run, or all (-1).
    """
    library = ctypes.CDLL(str(build("kernels.cpp", tuple(FLAGS))))
    library.agf_seed.argtypes = [ctypes.c_uint64]
    library.agf_only.argtypes = [ctypes.c_int64]
    library.agf_simulate.argtypes = [
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
    ]
    library.agf_simulate.restype = ctypes.c_char_p
    return library


@contextlib.contextmanager
def simulating(seed=0):
    """Run CUDA kernels, on CPU tensors, while in this context."""
    kernels().agf_seed(seed)
    _C.set_simulator(ctypes.cast(kernels().agf_simulate, ctypes.c_void_p).value)
    try:
        yield
    finally:
        _C.set_simulator(0)
