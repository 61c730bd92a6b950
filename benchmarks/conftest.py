"""Fixtures and the report of the benchmark suites."""
import ceilings
import pytest
import torch


def pytest_collection_modifyitems(config, items):
    """Leave the races alone unless they were asked for."""
    if not config.getoption("--benchmark"):
        skip = pytest.mark.skip(reason="benchmarks run with `pytest --benchmark`")
        for item in items:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _inference():
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def _row(bench):
    info = bench.extra_info
    if "gb_per_s" in info:
        rate, ceiling, unit = info["gb_per_s"], ceilings.copy_gb_per_s(), "GB/s"
    else:
        rate, ceiling, unit = info["gflop_per_s"], ceilings.arithmetic_gflop_per_s(), "GFLOP/s"
    info["ceiling"], info["share_of_ceiling"] = ceiling, rate / ceiling
    micro = info["median_s"] * 1e6
    return (
        f"{bench.name.removeprefix('bench_'):<52}{micro:>11.1f}"
        f"{info['ratio_to_eager']:>10.2f}{info['ratio_to_compile']:>10.2f}"
        f"{rate:>10.1f} {unit:<8}{100 * rate / ceiling:>5.0f} %"
    )


def pytest_terminal_summary(terminalreporter, config):
    """Print one line a race: our time, the ratio to each rival and the share of the ceiling."""
    session = getattr(config, "_benchmarksession", None)
    rows = [b for b in session.benchmarks if "median_s" in b.extra_info] if session else []
    if not rows:
        return
    lines = [_row(bench) for bench in rows]
    write = terminalreporter.write_line
    terminalreporter.section("races, medians of interleaved rounds")
    write(
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}; "
        f"ceilings of this run: copy {ceilings.copy_gb_per_s():.1f} GB/s, "
        f"matmul {ceilings.matmul_gflop_per_s():.0f} and "
        f"convolution {ceilings.convolution_gflop_per_s():.0f} GFLOP/s (float32)"
    )
    write(f"{'':<52}{'ours, us':>11}{'x eager':>10}{'x compile':>10}{'rate':>14}{'ceiling':>12}")
    for line in lines:
        write(line)


def pytest_configure(config):
    """Leave the table to the summary above, which pairs each time with its rivals'."""
    config.option.benchmark_quiet = True
