"""Mutation testing: changes a module in one place at a time and counts what the tests notice.

    pip install cosmic-ray
    python tests/mutate.py autoguide_fast/seeds.py --mutants 40

The changes are cosmic-ray's. It would write each of them into the file and start the tests anew;
here the files stay as they are, and each mutant is imported by a fork of a process that has torch
loaded already: a second for each instead of five. Processes that tests start import it, too.
"""

import argparse
import ast
import difflib
import importlib.util
import inspect
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path

import numpy  # noqa: F401  loaded before the forks, as all that takes time
import PIL.Image  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import torch  # noqa: F401
import tqdm  # noqa: F401
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]

# What judges a module: files of tests, the fast ones first, and an expression as of pytest's -k,
# without spaces.
JUDGES = {
    "autoguide_fast/schedules.py": "test_schedules test_sampler",
    "autoguide_fast/seeds.py": "test_seeds test_sample",
    "autoguide_fast/guidance.py": "test_guidance test_borrowed_memory test_sampler",
    "autoguide_fast/sampler.py": "test_sampler test_ambient test_sample",
    "autoguide_fast/request.py": "test_sample_errors test_sample test_sampler test_engine "
    "test_checkpoints test_presets -k test_sample|from_files|by_name|goes_wrong|is_its_model",
    "autoguide_fast/generate.py": "test_sample_errors test_sample test_sampler "
    "test_borrowed_memory test_sample_command test_engine test_graph_engine test_graph_memory "
    "-k test_sample_errors|test_sample.py|test_sampler|borrowed|batches_are|sample_takes|goes_on|"
    "makes_room|hands_on|overflow",
    "autoguide_fast/preconditioning.py": "test_preconditioning",
    "autoguide_fast/cpu.py": "test_cpu",
    "autoguide_fast/ops/conv3x3_choice.py": "test_conv3x3_choice",
    "trainer/precision.py": "test_trainer_precision test_conv3x3_choice",
    "autoguide_fast/checkpoints/format.py": "test_checkpoints",
    "autoguide_fast/checkpoints/native.py": "test_checkpoints test_ambient test_as_built "
    "test_reference_snapshots -k test_checkpoints|loading|options_that|sigma_data|compute",
    "autoguide_fast/checkpoints/bundled.py": "test_checkpoints test_pretrained",
    "autoguide_fast/engine/cache.py": "test_engine_cache",
    "autoguide_fast/engine/lower.py": "test_engine_plan test_engine_modes test_engine "
    "-k test_engine_plan|without_encoder|evaluation|levels|samples|work",
    "autoguide_fast/engine/prepared.py": "test_engine_modes test_as_built test_engine "
    "test_engine_memory -k not(evaluation|edited_net)",
    "autoguide_fast/engine/cpu_stepper.py": "test_engine -k samples|state|belong|callback|snapshot",
    "autoguide_fast/ema.py": "test_trainer_ema",
    **dict.fromkeys(
        [f"autoguide_fast/metrics/{n}.py" for n in ("running", "mmd", "neighbours", "manifold")],
        "test_measuring test_metrics -k running|kernel|clip|density|coverage|precision|frechet",
    ),
    "trainer/feature_parts.py": "test_evaluate -k parts|interrupted",
    "trainer/ema.py": "test_trainer_ema",
    "trainer/loss.py": "test_trainer_loop -k golden|loss|level",
    "trainer/optimizer.py": "test_trainer_loop test_trainer_capture "
    "-k golden|repair|freed|loss|moments|overflow",
    "trainer/durable.py": "test_trainer_damage test_trainer_recovery "
    "-k not(fifty|signals|bit_exact)",
    "trainer/data/order.py": "test_data_order",
}


def mutants(code, operators=None):
    """Return the mutants of `code` by the line and column that they change."""
    tree, found = get_ast(code), {}
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():
            continue
        positions = (p for node in ast_nodes(tree) for p in operator().mutation_positions(node))
        for occurrence, (start, _) in enumerate(positions):
            found.setdefault(start, []).append((operator, occurrence))
    return found


def drawn(code, count, seed):
    """Yield up to `count` mutants, from as many places as there are; none that is the same code."""
    generator, places = random.Random(seed), mutants(code)
    for changes in places.values():
        generator.shuffle(changes)
    seen = {_meaning(code)}
    while count and any(places.values()):
        for place in generator.sample(sorted(places), len(places)):
            if not count or not places[place]:
                continue
            operator, occurrence = places[place].pop()
            mutant = mutate_code(code, operator(), occurrence)
            try:
                meaning = _meaning(mutant)
            except SyntaxError:  # such as of "not" before an assignment expression
                continue
            if meaning not in seen:
                seen.add(meaning)
                count -= 1
                yield mutant


def _meaning(code):
    """What runs: the syntax tree without annotations, nor `strict=`, which no input can violate."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords = [k for k in node.keywords if k.arg != "strict"]
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                setattr(node, name, ast.Constant(None))
    return ast.dump(tree)


class Mutated(SourceFileLoader):
    """Loads one module from other code than its file's; also finds it."""

    def __init__(self, module, path, code):
        super().__init__(module, str(path))
        self.code = code

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            return importlib.util.spec_from_file_location(name, self.path, loader=self)
        return None

    def get_code(self, fullname):
        return compile(self.code, self.path, "exec")

    def into(self, folder):
        """Have each Python that starts with `folder` on its path load the module so, too."""
        lines = (
            "import importlib.util, sys",
            "from importlib.machinery import SourceFileLoader",
            inspect.getsource(Mutated),
            f"sys.meta_path.insert(0, Mutated({self.name!r}, {self.path!r}, {self.code!r}))",
        )
        (folder / "sitecustomize.py").write_text("\n".join(lines), encoding="utf-8")


class FastestFirst:
    """A plugin of pytest: the order of the tests, by the seconds that each took before.

    Args:
        file (Path): Where the seconds are kept, as JSON; written by the first run.
        most (float): Slower tests are left out.
    """

    def __init__(self, file, most):
        self.file, self.most, self.seconds = file, most, {}
        self.before = json.loads(file.read_text()) if file.exists() else {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: self.before.get(item.nodeid, 0))
        items[:] = [item for item in items if self.before.get(item.nodeid, 0) <= self.most]

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration

    def pytest_sessionfinish(self):
        if not self.before:
            self.file.write_text(json.dumps(self.seconds))


def judged(path, code, arguments, log, seconds, plugin):
    """Run the tests in a fork; return its exit code, as a number, and the seconds of its CPU."""
    child = os.fork()
    if child == 0:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = f"autoguide_fast.{module}" if module.startswith("trainer") else module
        mutated, folder = Mutated(module, path, code), plugin.file.parent
        sys.meta_path.insert(0, mutated)
        mutated.into(folder)
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}" if before else str(folder)
        result = pytest.main([*arguments, "-x", "-q", "-p", "no:cacheprovider"], [plugin])
        os._exit(int(result))
    before, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() + 20 * seconds
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:  # waits for what never comes
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done[1], after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tests_of(name):
    """Pytest's arguments for the tests that judge a module."""
    files, _, expression = JUDGES[name].partition(" -k ")
    arguments = [str(ROOT / "tests" / f"{file}.py") for file in files.split()]
    for sign, word in (("|", " or "), ("&", " and "), ("not(", "not (")):
        expression = expression.replace(sign, word)
    return arguments + (["-k", expression] if expression else [])


def main():
    """Judge one module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("module", choices=JUDGES)
    parser.add_argument("--mutants", type=int, default=40, help="how many to draw (40)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument(
        "--under", type=float, default=math.inf, help="leave out tests that take more seconds"
    )
    parser.add_argument("--log", default=os.devnull, help="file for pytest's last output")
    options = parser.parse_args()
    os.chdir(ROOT)
    path, arguments = ROOT / options.module, tests_of(options.module)
    code = path.read_text()
    with tempfile.TemporaryDirectory() as folder:
        killed, total = counted(path, code, arguments, options, Path(folder) / "seconds")
    print(f"{options.module}: {killed} of {total} mutants noticed")


def counted(path, code, arguments, options, file):
    """Print the mutants that no test notices; return how many are noticed, and of how many."""

    def run(mutant, seconds):
        plugin = FastestFirst(file, options.under)
        return judged(path, mutant, arguments, options.log, seconds, plugin)

    status, seconds = run(code, 3600)
    if status:
        raise SystemExit(f"{options.module}: its tests must pass first, see --log")
    killed = total = 0
    for mutant in drawn(code, options.mutants, options.seed):
        total += 1
        limit = round(5 * seconds) + 5
        if run(mutant, limit)[0]:
            killed += 1
            continue
        difference = difflib.unified_diff(code.splitlines(), mutant.splitlines(), "", "", n=0)
        print(*list(difference)[2:], sep="\n", flush=True)
    return killed, total


if __name__ == "__main__":
    main()
