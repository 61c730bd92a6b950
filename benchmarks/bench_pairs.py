"""A guided pair, from one evaluation of its model to the whole sampling, against its rivals."""

import contest
import memory
import pairs
import pytest
from ceilings import arithmetic
from racing import race


def _rows():
    """All rows, so ordered that neighbours share what was compiled."""
    for net_name, entry in pairs.NETS.items():
        for batch in entry.batches:
            for dtype in contest.DTYPES:
                for task in contest.TASKS:
                    if task == "sampling" and batch not in entry.sampled:
                        continue
                    short = batch in entry.short and dtype == "float32" and task != "denoiser"
                    yield pytest.param(
                        task,
                        net_name,
                        batch,
                        dtype,
                        marks=() if short else pytest.mark.long,
                        id=f"{task}-{net_name}-b{batch:02}-{dtype}",
                    )


@pytest.mark.parametrize("task, net_name, batch, dtype", list(_rows()))
def bench_pair(task, net_name, batch, dtype, benchmark, request):
    """Race one task over one pair of nets, at one batch size and in one type."""
    path = request.config.getoption("--reference")
    compiles = not request.config.getoption("--benchmark-eager")
    names = ["eager", *(["compile"] if compiles else []), *(["reference"] if path else [])]
    dtype = contest.DTYPES[dtype]
    noise, labels = pairs.inputs(pairs.pair(net_name)[0], batch)
    rivals = {name: contest.rival(name, net_name, batch, dtype, path) for name in names}
    engine = contest.ours(net_name, dtype)
    info = benchmark.extra_info
    run = {
        name: contest.TASKS[task](contestant, noise, labels)
        for name, contestant in {"ours": engine, **rivals}.items()
    }
    expected = run["eager"]().clone()
    for name in ("ours", *names[1:]):
        own = dtype if name == "ours" else rivals[name].dtype
        error = contest.check(name, run[name](), expected, contest.TOLERANCES[task][own])
        info[f"{name}_error"] = error
    benchmark.group = task
    race(
        benchmark,
        run.pop("ours"),
        run,
        arithmetic(dtype),
        contest.gflop(task, net_name, batch),
    )
    how = rivals["compile"].how if compiles else ""
    info["compile_settings"] = how
    info["engine_bytes"] = engine.peak_memory(batch)
    if request.config.getoption("--benchmark-memory"):
        for name in ("ours", *names):
            info[f"{name}_bytes"] = memory.measured(name, task, net_name, batch, dtype, path, how)
