"""PEP 517 backend: setuptools, plus a torch to build with only where the target has none."""
import subprocess
import sys

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  every hook that is not replaced below

TORCH_REQUIREMENT = "torch>=2.11,<2.14"  # the same range as in pyproject.toml
TORCH_RANGE = ((2, 11), (2, 14))

# Finds torch without importing it, which would take seconds and load its libraries.
_LOCATE = """
import importlib.util, json, pathlib, runpy
spec = importlib.util.find_spec("torch")
found = None
if spec is not None and spec.origin is not None:
    root = pathlib.Path(spec.origin).parent
    version = runpy.run_path(str(root / "version.py"))
    found = {"version": str(version["__version__"]), "cuda": version.get("cuda"),
             "include": str(root / "include"), "lib": str(root / "lib")}
print(json.dumps(found))
"""


def find_torch():
    """Return where a supported torch lies, or None.

    The environment that is installed into comes first: pip's build isolation works through
    `PYTHONPATH`, so the same interpreter without it (`-E`) sees that environment. Otherwise the
    build environment is searched, which is where `get_requires_for_build_*` puts a torch.

    Returns:
        A dict with `version`, `cuda` (a version or None), `include` and `lib` (folders), or None.
    """
    import json

    for flags in (["-E"], []):
        command = [sys.executable, *flags, "-c", _LOCATE]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        if found is not None:
            release = tuple(int(part) for part in found["version"].split(".")[:2])
            if TORCH_RANGE[0] <= release < TORCH_RANGE[1]:
                return found
    return None


def _torch_if_missing():
    return [] if find_torch() else [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings=None):
    """PEP 517 hook: what building a wheel needs beyond pyproject.toml."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_if_missing()


def get_requires_for_build_editable(config_settings=None):
    """PEP 660 hook: what an editable installation needs beyond pyproject.toml."""
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_if_missing()
