"""Algorithms and types that are measured: what wins, what is kept, and who agrees with whom."""

import json
import os
import time

import pytest
import torch
from nets import tiny
from tolerances import relative_error

from autoguide_fast import Engine, engine, kept_choices
from autoguide_fast.engine import choice, race
from autoguide_fast.engine.algorithms import Choice, candidates, static, static_choice
from autoguide_fast.engine.lower import convolutions
from autoguide_fast.engine.prepared import STORAGE_TYPES

TYPES = [torch.float32, torch.bfloat16, torch.int8]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Racing is on, nothing is known, and this is the folder where it is kept."""
    monkeypatch.setenv("AGF_AUTOTUNE", "1")
    monkeypatch.setenv("AGF_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    kept_choices._used.clear()
    engine.clear()


def forget():
    kept_choices._used.clear()


def file_of(folder):
    (path,) = folder.glob("choices-*.json")
    return path


def evaluated(dtype):
    net = tiny(model_channels=32)
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    return Engine(net, dtype=dtype).model(x, torch.tensor(0.7), torch.eye(5)[:3])


def settled(names):
    """A race in which the last of each key's candidates takes half of the others' time."""

    def run(raced):
        names.extend(str(c) for c in raced)
        times = {c: [str(a) for a in candidates(c)] for c in raced}
        return {
            c: {n: [0.5, 0.5] if n == each[-1] else [1.0, 1.0] for n in each}
            for c, each in times.items()
        }

    return run


def never(*_):
    raise AssertionError("raced")


@pytest.mark.parametrize(
    "times, expected",
    [
        ({"rule": [1, 1], "other": [0.96, 0.96]}, "rule"),
        ({"rule": [1, 1], "other": [0.94, 0.94]}, "other"),
        ({"rule": [1, 1], "other": [0.5, 1.2]}, "rule"),  # slower for some batches
        ({"rule": [1, 1], "other": [0.5, 1.04]}, "other"),
        ({"rule": [2], "other": [1.5], "third": [1]}, "third"),
        ({"rule": [1]}, "rule"),
        ({"rule": [1, 1], "other": [0, 0]}, "rule"),  # a clock that hardly ticks
    ],
)
def test_the_static_rule_has_a_start(times, expected):
    assert choice.fastest(times, "rule") == expected


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("number", range(4))
def test_every_candidate_computes_the_same(dtype, number, monkeypatch):
    expected = evaluated(torch.float32)
    usual = relative_error(evaluated(dtype), expected)

    def forced(found):
        return {c: Choice((each := candidates(c))[number % len(each)], "asked for") for c in found}

    monkeypatch.setattr(choice, "of_convolutions", forced)
    error = relative_error(evaluated(dtype), expected)
    assert error < (2e-6 if dtype == torch.float32 else 2 * usual)


def test_static_rules_are_candidates():
    for storage in STORAGE_TYPES.values():
        found = convolutions(tiny(model_channels=32), storage)
        assert {c.plan for c in found} >= {storage} and {c.taps for c in found} == {1, 9}
        assert all(static(c) in candidates(c) for c in found)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_race_is_run_once(dtype, cache, monkeypatch):
    first = Engine(tiny(), dtype=dtype).info()
    assert "measured now: " in first and " ms" in first
    raced = json.loads(file_of(cache).read_text())["choices"]
    assert raced and all(min(t) > 0 for e in raced.values() for t in e["times"].values())
    forget()
    monkeypatch.setattr(race, "convolutions", never)
    again = Engine(tiny(), dtype=dtype).info()
    assert again == first.replace("measured now", "measured earlier")


def test_the_winner_runs(cache, monkeypatch):
    monkeypatch.setattr(race, "convolutions", settled([]))
    net = tiny(model_channels=32)
    chosen = Engine(net, dtype=torch.int8).model.lowered.choices
    assert all(c.algorithm == candidates(convolution)[-1] for _, convolution, c in chosen)
    monkeypatch.setenv("AGF_AUTOTUNE", "0")
    chosen = Engine(net, dtype=torch.int8).model.lowered.choices
    assert all(c == static_choice(convolution) for _, convolution, c in chosen)


def test_kept_engines_know_whether_choices_were_measured(cache, monkeypatch):
    net = tiny()
    first = engine.cached(net)
    assert engine.cached(net) is first
    monkeypatch.setenv("AGF_AUTOTUNE", "0")
    assert engine.cached(net) is not first


@pytest.mark.parametrize("times, expected", [([0.98, 0.98], False), ([0.9, 0.9], True)])
def test_auto_takes_the_fastest_type(times, expected, cache, monkeypatch):
    other = torch.float32 if choice.static_type() == torch.bfloat16 else torch.bfloat16
    monkeypatch.setattr(race, "types", lambda _: {choice.static_type(): [1.0, 1.0], other: times})
    assert (Engine(tiny(), dtype="auto").dtype == other) == expected
    forget()
    monkeypatch.setattr(race, "types", never)
    kept = Engine(tiny(seed=1), dtype=["auto"])  # of other weights
    assert (kept.dtype == other) == expected and "measured earlier" in kept.info()


def test_auto_is_raced(cache):
    assert "model: " in (text := Engine(tiny(), dtype="auto").info())
    assert "float32" in text and "bfloat16" in text and "measured now" in text


def damaged(text, how):
    values = json.loads(text)
    if how == "cut":
        return text[: len(text) // 2]
    if how == "changed":
        return text.replace("direct", "f4x4", 1)
    if how == "nothing":
        return ""
    if how == "other format":
        return json.dumps({"format": 99})
    if how == "no dictionary":
        return "[1, 2]"
    del values["checksum"]
    values["choices"] = {key: {"choice": "magic", "times": {}} for key in values["choices"]}
    return json.dumps(values)


@pytest.mark.parametrize(
    "how", ["cut", "changed", "nothing", "other format", "no dictionary", "unknown name"]
)
def test_damage_is_mended_in_silence(how, cache, monkeypatch, recwarn):
    raced = []
    monkeypatch.setattr(race, "convolutions", settled(raced))
    Engine(tiny())
    path = file_of(cache)
    whole, keys = path.read_text(), raced.copy()
    path.write_text(damaged(whole, how))
    Engine(tiny())  # what a process has used it keeps
    assert raced == keys
    forget()
    Engine(tiny())
    assert raced == 2 * keys and path.read_text() == whole and not recwarn


def test_where_nothing_can_be_kept_nothing_is_measured(cache, monkeypatch):
    cache.write_text("in the way")  # nothing that permissions do stops an administrator
    monkeypatch.setattr(race, "convolutions", never)
    monkeypatch.setattr(race, "types", never)
    made = Engine(tiny(), dtype="auto")
    assert made.dtype == choice.static_type()
    assert made.info().count("cannot be written (File exists)") > 1
    assert all(c.algorithm == static(known) for _, known, c in made.model.lowered.choices)


def test_without_a_home(monkeypatch):
    for name in ("AGF_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(kept_choices.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    assert kept_choices.folder() is None
    assert kept_choices.decide({"key": ["a"]}, never)[0] == {}


def test_processes_that_begin_at_once_agree(cache):
    """Each would choose otherwise; the first to have the lock decides for all."""
    count, names = 4, [str(i) for i in range(4)]
    reading, writing = os.pipe()
    for number in range(count):
        if os.fork():
            continue
        os.close(reading)

        def run(keys, number=number):
            time.sleep(0.05)
            return {key: {"choice": str(number), "times": {}} for key in keys}

        found, _ = kept_choices.decide({"a": names, "b": names}, run)
        os.write(writing, "".join(found[key]["choice"] for key in "ab").encode())
        os._exit(0)
    os.close(writing)
    for _ in range(count):
        os.wait()
    with open(reading) as pipe:
        said = pipe.read()
    assert len(said) == 2 * count and len(set(said)) == 1


def test_who_waits_too_long_takes_the_static_rule(cache, monkeypatch):
    def inner(keys):
        raise TimeoutError("held")

    found, source = kept_choices.decide({"key": ["a"]}, inner)
    assert not found and source.startswith("static rule")


def test_bad_switch(monkeypatch):
    monkeypatch.setenv("AGF_AUTOTUNE", "yes")
    with pytest.raises(ValueError, match="AGF_AUTOTUNE must be 0 or 1, got 'yes'"):
        Engine(tiny())
