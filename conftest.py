"""Options of pytest in this repository: `pytest` runs the tests, `pytest --benchmark` the races."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent
if "--benchmark" in sys.argv:
    # Now, because whoever loads torch first settles where its threads run.
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import pinning

    pinning.pin()


def pytest_addoption(parser):
    """Declare `--benchmark`; pytest refuses abbreviations of pytest-benchmark's own options."""
    group = parser.getgroup("autoguide_fast")
    group.addoption(
        "--benchmark",
        action="store_true",
        help="run the benchmark suites in benchmarks/ instead of the tests",
    )
    group.addoption("--benchmark-all", action="store_true", help="race at all sizes: hours")
    group.addoption("--benchmark-memory", action="store_true", help="measure peak memory too")
    group.addoption("--benchmark-eager", action="store_true", help="leave out torch.compile")
    group.addoption("--benchmark-plot", metavar="PNG", help="draw the races into this file")
    group.addoption(
        "--reference",
        metavar="PATH",
        help="race the EDM2 reference implementation, of which PATH is a checkout, too",
    )


def pytest_configure(config):
    """Point pytest at benchmarks/ where the command line names no files of its own."""
    # The table of benchmarks/report.py has each time beside its rivals'.
    config.option.benchmark_quiet = True
    if config.getoption("--benchmark") and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = [str(ROOT / "benchmarks")]
