"""Options of pytest in this repository: `pytest` runs the tests, `pytest --benchmark` the races."""
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent


def pytest_addoption(parser):
    """Declare `--benchmark`; pytest refuses abbreviations of pytest-benchmark's own options."""
    group = parser.getgroup("autoguide_fast")
    group.addoption(
        "--benchmark",
        action="store_true",
        help="run the benchmark suites in benchmarks/ instead of the tests",
    )


def pytest_configure(config):
    """Point pytest at benchmarks/ where the command line names no files of its own."""
    if config.getoption("--benchmark") and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = [str(ROOT / "benchmarks")]
