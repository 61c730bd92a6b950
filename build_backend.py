"""PEP 517 backend: setuptools, plus a torch to build with only where the target has none.

With build isolation pip installs what the hooks below ask for. Without it, what the environment
lacks is fetched into build/ for this build; nothing is installed that was not asked for.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent
FETCHED = ROOT / "build" / f"fetched-{sys.implementation.cache_tag}"

# What pyproject.toml says, without a reader of TOML, which Python 3.10 has not.
_PROJECT = (ROOT / "pyproject.toml").read_text()
TOOLS = re.findall(r'"([\w-]+)>=([\d.]+)"', re.search(r"^requires = (.*)", _PROJECT, re.M)[1])
OLDEST_TORCH = re.search(r'"torch>=([\d.]+)"', _PROJECT)[1]
TESTED_TORCH = re.search(r'^tested-torch = "([\d.]+)"', _PROJECT, re.M)[1]

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


def _is_at_least(found, oldest):
    """Compare releases such as 2.13.0+cpu and 2.11, by as many numbers as the second has."""
    numbers = [int(number) for number in re.match(r"[\d.]*\d", found)[0].split(".")]
    wanted = [int(number) for number in oldest.split(".")]
    return numbers[: len(wanted)] >= wanted


def _installer():
    """Return the start of an install command, of pip or of uv, whose environments have no pip."""
    try:
        version("pip")  # not find_spec, at which setuptools takes this process for pip's
        return [sys.executable, "-m", "pip", "install"]
    except PackageNotFoundError:
        pass
    uv = os.environ.get("UV") or shutil.which("uv")  # UV is where the uv lies that started this
    return [uv, "pip", "install", "--python", sys.executable] if uv else None


def _fetch(requirements, *options):
    """Put packages into build/ and make them importable here."""
    print(f"autoguide_fast: the build needs {', '.join(requirements)}; fetching", file=sys.stderr)
    command = _installer()
    if command:
        command += ["--quiet", "--upgrade", "--target", str(FETCHED), *options, *requirements]
    if not command or subprocess.run(command, check=False, stdout=sys.stderr).returncode:
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
    for name, oldest in TOOLS:
        try:
            enough = _is_at_least(version(name), oldest)
        except PackageNotFoundError:
            enough = False
        if not enough:
            missing.append(f"{name}>={oldest}")
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
        if found and _is_at_least(found["version"], OLDEST_TORCH):
            return found
    return None


def torch_to_build_with():
    """Return `find_torch()`, after fetching a torch into build/ where there is none."""
    if find_torch() is None:
        _fetch([f"torch>={OLDEST_TORCH}"], "--no-deps")
    return find_torch()


def _torch_if_missing():
    return [] if find_torch() else [f"torch>={OLDEST_TORCH}"]


def get_requires_for_build_wheel(config_settings=None):
    """PEP 517 hook: what building a wheel needs beyond pyproject.toml."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_if_missing()


def get_requires_for_build_editable(config_settings=None):
    """PEP 660 hook: what an editable installation needs beyond pyproject.toml."""
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_if_missing()
