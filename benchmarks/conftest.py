"""Selection, fixtures and report of the benchmark suites; their options are in ../conftest.py."""

import pinning
import plot
import pytest
import racing
import report
import torch


def pytest_configure(config):
    """Say what the marker is for."""
    config.addinivalue_line("markers", "long: runs with -k, a full name or --benchmark-all")


def pytest_collection_modifyitems(config, items):
    """Leave the races alone unless they were asked for, and the long ones unless by name."""
    if not config.getoption("--benchmark"):
        skip = pytest.mark.skip(reason="benchmarks run with `pytest --benchmark`")
        for item in items:
            item.add_marker(skip)
        return
    torch.set_num_threads(pinning.threads())
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=racing.clock))
    named = config.option.keyword or any("::" in argument for argument in config.args)
    if named or config.getoption("--benchmark-all"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def pytest_terminal_summary(terminalreporter, config):
    """Print the table, and draw the plot where one was asked for."""
    session = getattr(config, "_benchmarksession", None)
    if session is None:
        return
    rows = [b for b in session.benchmarks if "rate" in b.extra_info]
    if not rows:
        return
    terminalreporter.section("races, medians of interleaved rounds")
    for line in report.lines(rows, session.compared_mapping):
        terminalreporter.write_line(line)
    path = config.getoption("--benchmark-plot")
    if path:
        plot.draw(
            [{"name": b.name, "group": b.group, "extra_info": b.extra_info} for b in rows], path
        )
        terminalreporter.write_line(f"drawn: {path}")
