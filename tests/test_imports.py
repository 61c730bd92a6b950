"""Imports run one way only, and nowhere in a circle: read from the source of every module."""

import ast
import itertools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From top to bottom: a module imports from its own line and from those below. Each entry is how the
# paths of its files begin, the longest counts; `__init__` is the package as users see it.
ROOMS = [
    ("trainer", "benchmarks", "tests"),
    ("autoguide_fast/cli",),
    ("autoguide_fast/__init__", "autoguide_fast/facade", "autoguide_fast/metrics"),
    ("autoguide_fast/adapters", "autoguide_fast/diagnosis"),
    (
        "autoguide_fast/generate",
        "autoguide_fast/guidance_input",
        "autoguide_fast/guidance_request",
        "autoguide_fast/request",
        "autoguide_fast/start",
        "autoguide_fast/plots",
    ),
    ("autoguide_fast/decoding",),
    ("autoguide_fast/engine",),
    ("autoguide_fast/eager", "autoguide_fast/guided_stepper", "autoguide_fast/samplers"),
    ("autoguide_fast/sampler.py", "autoguide_fast/schedules", "autoguide_fast/seeds"),
    (
        "autoguide_fast/as_built",
        "autoguide_fast/checkpoints",
        "autoguide_fast/encoders",
        "autoguide_fast/guidance",
    ),
    ("autoguide_fast/networks", "autoguide_fast/textbook", "autoguide_fast/toy"),
    ("autoguide_fast/unet",),
    ("autoguide_fast/nn", "autoguide_fast/torch_functional"),
    ("autoguide_fast/ops",),
    (
        "autoguide_fast/cpu",
        "autoguide_fast/_extension",
        "autoguide_fast/kept_choices",
        "autoguide_fast/runtime_kernels",
    ),
    ("autoguide_fast/_C",),
    ("autoguide_fast/",),  # what needs nothing of the extension
]


# Methods of `Precond` by the names that other libraries give them, which do what stands above it.
EXCEPTIONS = {("autoguide_fast.networks", "autoguide_fast.checkpoints.hub")}


def modules():
    """All modules by name: those of the tests and benchmarks stand beside each other."""
    found = {}
    for package in ("autoguide_fast", "trainer", "benchmarks", "tests"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if package in ("benchmarks", "tests"):
                parts = parts[1:]
            found[".".join(parts)] = path
    found["conftest"] = ROOT / "tests" / "conftest.py"  # benchmarks have one, too
    found["autoguide_fast._C"] = ROOT / "autoguide_fast" / "_C"
    return found


def imported(name, path, known):
    """The modules, of those known, that the module `name` imports anywhere in its code."""
    text = path.read_text(encoding="utf-8") if path.suffix else ""  # but of what was compiled
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _resolved(alias.name.split("."), (), known)
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")[: -node.level] if node.level else []
            parts += node.module.split(".") if node.module else []
            for alias in node.names:
                yield from _resolved(parts, (alias.name,), known)


def _resolved(parts, attribute, known):
    """The module `parts`, or the one in it that `attribute` names."""
    if parts[:2] == ["autoguide_fast", "trainer"]:  # as it is installed
        parts = parts[1:]
    for candidate in ([*parts, *attribute], [*parts, *attribute, "__init__"]):
        if ".".join(candidate) in known:
            yield ".".join(candidate)
            return
    if attribute:
        yield from _resolved(parts, (), known)


KNOWN = modules()
IMPORTS = {
    name: {
        other
        for other in imported(name, path, KNOWN)
        if other != name and (name, other) not in EXCEPTIONS
    }
    for name, path in KNOWN.items()
}


def room(name):
    path = KNOWN[name].relative_to(ROOT).as_posix()
    fits = [(len(p), i) for i, starts in enumerate(ROOMS) for p in starts if path.startswith(p)]
    return max(fits)[1]


def test_the_source_is_read():
    """What is known to be imported is found, late, relative and in whatever form it is written."""
    assert {"autoguide_fast.as_built", "autoguide_fast.ops.__init__"} <= IMPORTS[
        "autoguide_fast.engine.lower"
    ]
    assert "autoguide_fast.engine.cache" in IMPORTS["autoguide_fast.engine.__init__"]
    assert "autoguide_fast.metrics.__init__" in IMPORTS["autoguide_fast.cli.demo"]  # in a function
    assert "trainer.trainer" in IMPORTS["test_modes"] and "nets" in IMPORTS["test_modes"]


@pytest.mark.parametrize("name", KNOWN)
def test_imports_run_one_way(name):
    upward = [other for other in IMPORTS[name] if room(other) < room(name)]
    assert not upward, f"{name} imports {upward}, which stand above it"


def circle(imports):
    """Modules that import each other, in order, the first once more at the end; or None."""
    done = set()

    def visit(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for other in sorted(imports[name]):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return None

    return next(filter(None, (visit(name, []) for name in imports)), None)


def test_no_imports_run_in_a_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    found = circle(IMPORTS)
    assert found is None, " -> ".join(found)


def test_the_readme_maps_all_modules():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (chart,) = [part for part in text.split("```") if "\nautoguide_fast/ " in part]
    words = set(chart.split("\nautoguide_fast/ ")[1].split("\ntrainer/ ")[0].split())
    folder = ROOT / "autoguide_fast"
    found = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    found |= {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    named = {word for word in words if word.endswith((".py", "/"))}
    assert named - {"pretrained/"} == found


def test_the_readme_says_so():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("Imports run one way only:")]
    steps = [step.split("`")[1::2] for step in line.split("→")]
    files = {"cli": "cli.entry", "engine": "engine.cache", "ops": "ops._library"}
    rooms = []
    for step in steps:
        paths = [files.get(word, word) for word in step]
        names = [p if p in KNOWN else f"autoguide_fast.{p}" for p in paths]
        names = [f"{n}.__init__" if f"{n}.__init__" in KNOWN else n for n in names]
        rooms.append([room(n) for n in names if n in KNOWN])
    for above, below in itertools.pairwise(filter(None, rooms)):
        assert max(above) < min(below)
    assert sum(map(len, rooms)) >= 8
