"""What the package says of torch's releases, and how the build finds what it needs."""

import ast
import importlib.metadata
import pathlib
import re
import sys
import warnings

import pytest

from autoguide_fast import _C
from autoguide_fast._extension import build_info, check_torch

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_one_range_of_torch():
    oldest, tested = build_info()["torch_oldest"], build_info()["torch_tested"]
    project = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r'"(torch\b.*)"', project) == [f"torch>={oldest}"]  # and no upper bound
    assert f'tested-torch = "{tested}"' in project
    mentioned = re.findall(r"torch[<>=]=?[\d.,<>=]+", (ROOT / "README.md").read_text())
    assert mentioned and set(mentioned) == {f"torch>={oldest}"}


@pytest.mark.parametrize("found", ["2.11.0", "2.13.0+cpu", "2.14.1", "2.14.2a0+git1234567"])
def test_tested_torch_is_taken_without_a_word(found):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_torch(found, "2.11", "2.14")


@pytest.mark.parametrize("found", ["2.15.0", "2.100.0.dev20270101", "3.0.0+cu140"])
def test_newer_torch_draws_a_warning(found):
    with pytest.warns(UserWarning, match=r"tested with torch 2\.11 to 2\.14, found " + found[:4]):
        check_torch(found, "2.11", "2.14")


@pytest.mark.parametrize("found", ["2.9.1", "2.10.0+cpu", "1.13.1"])
def test_older_torch_is_refused(found):
    with pytest.raises(ImportError, match=rf"needs torch>=2\.11, found {re.escape(found)}; run"):
        check_torch(found, "2.11", "2.14")


def declared(nodes):
    """What a stub declares in a module or class, by name."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AnnAssign)
    return {getattr(n, "name", None) or n.target.id: n for n in nodes if isinstance(n, kinds)}


def public(namespace):
    return {name for name in namespace if not name.startswith("_")}


def test_the_stub_declares_the_extension():
    stub = declared(ast.parse((ROOT / "autoguide_fast" / "_C.pyi").read_text()).body)
    assert stub.keys() == public(vars(_C))
    for name, node in stub.items():
        if isinstance(node, ast.ClassDef):
            of_any = {"name", "value"}  # enumeration
            members = public(vars(getattr(_C, name)))
            assert public(declared(node.body)) - of_any == members - of_any, name


@pytest.fixture
def backend(monkeypatch):
    """The module that pip and uv call, where importing it fetches nothing."""
    for tool in ("setuptools", "cmake", "ninja", "pybind11"):
        pytest.importorskip(tool)
    monkeypatch.syspath_prepend(str(ROOT))
    import build_backend

    yield build_backend
    sys.modules.pop("build_backend")


def test_build_tools_are_those_of_the_project(backend):
    assert [name for name, _ in backend.TOOLS] == ["setuptools", "cmake", "ninja", "pybind11"]
    assert build_info()["torch_oldest"] == backend.OLDEST_TORCH


@pytest.mark.parametrize(
    ("found", "oldest", "expected"),
    [
        ("2.13.0+cpu", "2.11", True),
        ("2.11.0", "2.11", True),
        ("2.9.1", "2.11", False),
        ("3.0", "2.11", True),
        ("4.0.0rc1", "3.26", True),
        ("77", "77", True),
        ("76.1", "77", False),
    ],
)
def test_releases_are_compared_as_numbers(backend, found, oldest, expected):
    assert backend._is_at_least(found, oldest) is expected


def test_what_the_build_lacks_comes_by_pip_or_by_uv(backend, monkeypatch, tmp_path):
    def no_pip(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(backend, "version", lambda name: "26.0")
    assert backend._installer() == [sys.executable, "-m", "pip", "install"]
    monkeypatch.setattr(backend, "version", no_pip)
    monkeypatch.setenv("UV", "/somewhere/uv")
    assert backend._installer() == ["/somewhere/uv", "pip", "install", "--python", sys.executable]
    monkeypatch.delenv("UV")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert backend._installer() is None
    with pytest.raises(SystemExit, match=r"needs ninja>=1.11, which could not be fetched; run"):
        backend._fetch(["ninja>=1.11"])
