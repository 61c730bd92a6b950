"""Asks CMake to build autoguide_fast._C; the rest is in pyproject.toml and CMakeLists.txt."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
from setuptools import Extension, setup  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402

from build_backend import OLDEST_TORCH, TESTED_TORCH, torch_to_build_with  # noqa: E402


class CMakeBuild(build_ext):
    """Configures and builds in one fixed folder per Python, so that a rebuild is incremental."""

    def build_extension(self, ext):
        """Build the one extension with CMake and ninja and put it where setuptools wants it."""
        torch = torch_to_build_with()
        import cmake
        import ninja
        import pybind11

        build_dir = ROOT / "build" / f"{sys.implementation.cache_tag}-{self.plat_name}"
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        cmake_program = str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
        options = {
            "CMAKE_MAKE_PROGRAM": Path(ninja.BIN_DIR) / "ninja",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "AGF_VERSION": self.distribution.get_version(),
            "AGF_TORCH_VERSION": torch["version"],
            "AGF_TORCH_OLDEST": OLDEST_TORCH,
            "AGF_TORCH_TESTED": TESTED_TORCH,
            "AGF_TORCH_CUDA": torch["cuda"] or "",
            "AGF_TORCH_INCLUDE": torch["include"],
            "AGF_TORCH_LIB": torch["lib"],
            "AGF_CUDA": os.environ.get("AGF_CUDA", "AUTO"),
            "AGF_CUDA_ARCHITECTURES": os.environ.get("AGF_CUDA_ARCHITECTURES", ""),
        }
        configure = [cmake_program, "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"]
        configure += [f"-D{key}={value}" for key, value in options.items()]
        for command in (configure, [cmake_program, "--build", str(build_dir)]):
            if subprocess.run(command, check=False).returncode:
                raise SystemExit(f"autoguide_fast: `{command[0]}` failed; its message is above")
        self.mkpath(str(target.parent))
        self.copy_file(str(build_dir / target.name), str(target))


setup(ext_modules=[Extension("autoguide_fast._C", [])], cmdclass={"build_ext": CMakeBuild})
