"""PEP 517 backend: setuptools, plus a torch to build with only where the target has none.

With build isolation pip installs what the hooks below ask for. Without it, what the environment
lacks is fetched into build/ for this build; nothing is installed that was not asked for.
"""
import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TORCH_REQUIREMENT = "torch>=2.11,<2.14"  # the same range as in pyproject.toml
TORCH_RANGE = ((2, 11), (2, 14))
# The same as build-system.requires in pyproject.toml, as (distribution, oldest release).
TOOLS = {"setuptools": (77,), "cmake": (3, 26), "ninja": (1, 11), "pybind11": (2, 13)}

FETCHED = Path(__file__).resolve().parent / "build" / f"fetched-{sys.implementation.cache_tag}"

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


def _release(text, parts):
    return tuple(int(part) for part in text.split("+")[0].split(".")[:parts] if part.isdigit())


def _fetch(requirements, *options):
    """Put packages into build/ and make them importable here."""
    print(f"autoguide_fast: the build needs {', '.join(requirements)}; fetching", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade"]
    command += ["--target", str(FETCHED), *options, *requirements]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        names = " ".join(f"'{requirement}'" for requirement in requirements)
        raise SystemExit(
            f"autoguide_fast: the build needs {', '.join(requirements)}, which could not be "
            f"fetched; run `pip install {names}` first"
        )
    _use_fetched()


def _use_fetched():
    if FETCHED.is_dir() and str(FETCHED) not in sys.path:
        sys.path.insert(0, str(FETCHED))
    importlib.invalidate_caches()


def _missing_tools():
    missing = []
    for name, oldest in TOOLS.items():
        try:
            enough = _release(version(name), len(oldest)) >= oldest
        except PackageNotFoundError:
            enough = False
        if not enough:
            missing.append(f"{name}>={'.'.join(map(str, oldest))}")
    return missing


if _missing_tools():
    _use_fetched()
    if missing := _missing_tools():
        _fetch(missing)

from setuptools import build_meta  # noqa: E402
from setuptools.build_meta import *  # noqa: E402, F403  every hook not replaced below


def find_torch():
    """Return where a supported torch lies, or None.

    The environment that is installed into comes first: pip's build isolation works through
    `PYTHONPATH`, so the same interpreter without it (`-E`) sees that environment. Then the build
    environment is searched, which is where `get_requires_for_build_*` puts a torch, and last what
    was fetched into build/.

    Returns:
        A dict with `version`, `cuda` (a version or None), `include` and `lib` (folders), or None.
    """
    for flags, path in ((["-E"], None), ([], None), ([], str(FETCHED))):
        environment = os.environ if path is None else os.environ | {"PYTHONPATH": path}
        command = [sys.executable, *flags, "-c", _LOCATE]
        result = subprocess.run(command, capture_output=True, check=True, env=environment)
        found = json.loads(result.stdout)
        if found and TORCH_RANGE[0] <= _release(found["version"], 2) < TORCH_RANGE[1]:
            return found
    return None


def torch_to_build_with():
    """Return `find_torch()`, after fetching a torch into build/ where there is none."""
    if find_torch() is None:
        _fetch([TORCH_REQUIREMENT], "--no-deps")
    return find_torch()


def _torch_if_missing():
    return [] if find_torch() else [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings=None):
    """PEP 517 hook: what building a wheel needs beyond pyproject.toml."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_if_missing()


def get_requires_for_build_editable(config_settings=None):
    """PEP 660 hook: what an editable installation needs beyond pyproject.toml."""
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_if_missing()
