"""No file runs code, hangs, or takes memory out of proportion to its size."""

import tracemalloc

import pytest
from golden import DATA
from hostile_pickles import CALLS, HOSTILE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import autoguide_fast
from autoguide_fast.checkpoints import pickle_reader, read_header, read_statistics

# What a process takes to open any file at all, and what small files may take.
FLOOR = (8 << 20) + (1 << 20)


@pytest.fixture(autouse=True)
def canary(monkeypatch, tmp_path_factory):
    """Fails a test in which code ran."""
    path = tmp_path_factory.mktemp("canary") / "executed"
    monkeypatch.setenv("AGF_CANARY", str(path))
    monkeypatch.chdir(path.parent)
    yield
    assert not list(path.parent.iterdir()), "code of the file was executed"


def assert_refused(path, function=autoguide_fast.load):
    """The file is refused in one sentence, with little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            function(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith((f"load: {path} must ", f"read_statistics: {path} must ")), message
    assert len(message) < 500 and message.isprintable() and message.count("; ") == 1, message
    assert peak < 2 * path.stat().st_size + FLOOR
    return message


def test_there_are_many():
    assert len(HOSTILE) >= 400


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name, tmp_path):
    path = tmp_path / "file.pkl"
    path.write_bytes(HOSTILE[name])
    message = assert_refused(path)
    kind, _, called = name.partition(" ")
    if kind in ("call", "line", "stream") and called in CALLS:
        reason = f"global {called}"
        if len(called) > 70:
            reason = reason[:70]
        known = called.startswith(("torch.float16", "torch.FloatStorage", "numpy.ndarray"))
        assert reason in message or known, message


@pytest.mark.parametrize("name", [n for n in HOSTILE if n.startswith(("array", "scalar", "call"))])
def test_hostile_statistics_are_refused(name, tmp_path):
    path = tmp_path / "file.pkl"
    path.write_bytes(HOSTILE[name])
    assert_refused(path, read_statistics)


def test_opcodes_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_reader, "MOST_OPCODES", 1000)
    with pytest.raises(ValueError, match="got more than 1000 opcodes; use"):
        autoguide_fast.load(DATA / "pixels-labelled.pkl")


PLACES = st.integers(0, 400_000)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("set"), PLACES, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("delete"), PLACES, st.integers(1, 2000)),
        st.tuples(st.just("repeat"), PLACES, st.integers(1, 2000)),
    ),
    min_size=1,
    max_size=4,
)


def mutated(data, changes):
    data = bytearray(data)
    for kind, place, what in changes:
        place %= len(data) + 1
        if kind == "set":
            data[place : place + len(what)] = what
        elif kind == "insert":
            data[place:place] = what
        elif kind == "delete":
            del data[place : place + what]
        else:
            data[place:place] = data[place : place + what]
    return bytes(data)


@pytest.mark.parametrize("name", ["pixels-labelled", "latents-unlabelled", "toy"])
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
@given(changes=CHANGES, early=st.booleans())
def test_mutated_snapshots_load_or_are_refused(name, tmp_path, changes, early):
    """Early changes fall among the first opcodes, where most of the structure is."""
    if early:
        changes = [(kind, place % 8000, what) for kind, place, what in changes]
    path = tmp_path / "file.pkl"
    path.write_bytes(mutated((DATA / f"{name}.pkl").read_bytes(), changes))
    for function in (autoguide_fast.load, lambda p: read_header(p, "load")):
        try:
            function(path)
        except ValueError as error:
            assert str(error).startswith(f"load: {path} must ") and "\n" not in str(error)


OPCODES = [bytes([code]) for code in pickle_reader._OPCODES]


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(parts=st.lists(st.one_of(st.sampled_from(OPCODES), st.binary(max_size=4)), max_size=60))
def test_opcodes_in_any_order_are_refused(tmp_path, parts):
    path = tmp_path / "file.pkl"
    path.write_bytes(b"\x80\x04" + b"".join(parts) + b".")
    with pytest.raises(ValueError, match=r"^load: .* must be a snapshot"):
        autoguide_fast.load(path)
