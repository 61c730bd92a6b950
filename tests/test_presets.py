"""Published presets: the list, where their weights come from, and bad servers."""

import hashlib
import json
import multiprocessing
import shutil

import pytest
import torch
from golden import DATA
from weight_server import serving

import autoguide_fast
from autoguide_fast import checkpoints, sample
from autoguide_fast.checkpoints import download, fetch, presets, weights
from autoguide_fast.cli import main

NAME = "edm2-img64-s-autog-fid"
NET, GUIDE = "edm2-img64-s-1073741-0.045.pkl", "edm2-img64-xs-0134217-0.110.pkl"
DATA_OF_NET = (DATA / "pixels-labelled.pkl").read_bytes()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder for weights, an empty hub cache, and nothing agreed to."""
    monkeypatch.setenv("AGF_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("AGF_WEIGHTS_URL", "http://127.0.0.1:9/weights")  # where nobody answers
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("AGF_ACCEPT_LICENCE", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(weights, "_checked", {})
    monkeypatch.setattr(download, "PAUSE", 0.001)
    return tmp_path / "models"


@pytest.fixture
def server(monkeypatch):
    with serving() as server:
        server.files[NET] = server.files[GUIDE] = DATA_OF_NET
        server.files["other"] = (DATA / "latents-unlabelled.pkl").read_bytes()
        monkeypatch.setenv("AGF_WEIGHTS_URL", server.url)
        yield server


def test_the_list():
    found = presets()
    assert len(found) == 36
    best = found["edm2-img512-s-autog-fid"]
    assert (best.guidance, best.published) == (2.1, {"fid": 1.34})
    assert (best.net.size, best.net.ema, best.net.images) == ("s", 0.07, 2_147_483_000)
    assert (best.guide.size, best.guide.ema, best.guide.labels) == ("xs", 0.125, True)
    assert not found["edm2-img512-s-guid-fid"].guide.labels
    for each in found.values():
        assert (each.guide is None) == (each.guidance == 1)
        assert each.net.dataset in each.name and f"-{each.net.size}-" in each.name


def test_the_command_lists_them(capsys, folder):
    folder.mkdir()
    (folder / NET).write_bytes(DATA_OF_NET)
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith(NAME)]
    assert line.split() == [NAME, "s", "1074", "0.045*", "xs", "134", "0.110", "1.70", "1.01"]
    assert len(lines) == 38 and "CC BY-NC-SA 4.0" in lines[-1]
    assert main(["presets", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 36 and rows[0]["net"]["parameters"] == 125_000_000


def test_a_preset_is_its_model_its_guide_and_its_weight(folder):
    folder.mkdir()
    (folder / NET).write_bytes(DATA_OF_NET)
    checkpoints.convert(DATA / "pixels-labelled.pkl", folder / f"{GUIDE[:-4]}.safetensors")
    options = {"seeds": range(2), "num_steps": 3, "class_labels": 3}
    a = sample(NAME, **options)
    assert torch.equal(a, sample(folder / NET, folder / NET, 1.7, **options))
    alone = sample(NAME, guidance=1, **options)
    assert torch.equal(alone, sample(folder / NET, **options))
    assert autoguide_fast.load(NAME).img_resolution == 16
    assert autoguide_fast.load(GUIDE).img_resolution == 16


def test_nothing_is_downloaded_without_agreement(server, folder):
    for call in (
        lambda: fetch(NAME),
        lambda: sample(NAME, seeds=[0]),
        lambda: autoguide_fast.load(NAME),
    ):
        with pytest.raises(ValueError, match=r"CC BY-NC-SA 4.0, must be agreed to") as caught:
            call()
        message = str(caught.value)
        assert f"{server.url}/{NET}" in message and str(folder) in message and "\n" not in message
    assert not server.requests and not folder.exists()


@pytest.mark.parametrize("way", ["argument", "environment", "command"])
def test_weights_are_downloaded_once_and_known_again(server, folder, monkeypatch, way, tmp_path):
    if way == "argument":
        assert fetch(NAME, accept_licence=True) == [folder / NET, folder / GUIDE]
    elif way == "environment":
        monkeypatch.setenv("AGF_ACCEPT_LICENCE", "1")
        sample(NAME, seeds=[0], num_steps=1)
    else:
        command = ["sample", "--model", NAME, "--seeds", "0", "--steps", "1", "--quiet"]
        assert main([*command, "--out", str(tmp_path / "a")]) == 2
        assert main([*command, "--out", str(tmp_path / "b"), "--accept-licence"]) == 0
        settings = json.loads((tmp_path / "b" / "manifest.json").read_text())["settings"]
        assert settings["guidance"] == 1.7 and settings["guide"]["name"] == GUIDE
    monkeypatch.delenv("AGF_ACCEPT_LICENCE", raising=False)
    assert (folder / NET).read_bytes() == DATA_OF_NET
    kept = (folder / f"{NET}.sha256").read_text()
    assert kept == f"{hashlib.sha256(DATA_OF_NET).hexdigest()}  {NET}\n"
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [NET, GUIDE, f"{NET}.sha256", f"{GUIDE}.sha256"]
    )
    before = len(server.requests)
    assert before == 2 and fetch(NAME) == [folder / NET, folder / GUIDE]
    assert len(server.requests) == before


def test_torchs_hub_cache_is_looked_at(folder):
    cache = folder.parent / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    for name in (NET, GUIDE):
        shutil.copy(DATA / "pixels-labelled.pkl", cache / name)
    assert fetch(NAME) == [cache / NET, cache / GUIDE]


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        (["cut"], 2),
        (["stall"], 2),
        (["long"], 2),
        (["503", "500"], 3),
        (["429"], 2),
        (["cut", "cut", "503", "cut", "stall", "cut", "cut", "cut"], 9),
        (["cut", "norange"], 2),
        (["cut", "wrongrange"], 3),
        (["cut", "moved"], 2),
    ],
    ids=str,
)
def test_bad_servers_are_outlasted(server, folder, faults, requests, monkeypatch):
    server.faults = list(faults)
    if "stall" in faults:
        monkeypatch.setattr(download, "TIMEOUT", 1)
    (path, _) = fetch(NAME, accept_licence=True)
    assert path.read_bytes() == server.files[NET]
    asked = [what for name, what in server.requests if name.endswith(NET)]
    # A busy machine may let more requests than that one time out.
    assert len(asked) == requests or ("stall" in faults and len(asked) > requests)
    if faults[0] == "cut":
        assert asked[1] == f"bytes={len(DATA_OF_NET) // 2}-"
    assert not [p for p in folder.iterdir() if "part" in p.name]


@pytest.mark.parametrize(
    ("faults", "error", "message"),
    [
        (["404"], ConnectionError, r"got the answer 404 \(Not Found\); download http"),
        (["403"], ConnectionError, r"got the answer 403 \(Forbidden\); download http"),
        (["503"] * 9, ConnectionError, r"got the answer 503 .*, 5 times in a row; download"),
        (["short"], ValueError, "must be a snapshot .* got one that ends too early"),
        (["page"], ValueError, "must be a snapshot .* got a page of HTML"),
    ],
)
def test_bad_servers_are_named(server, folder, faults, error, message):
    server.faults = list(faults)
    with pytest.raises(error, match="^fetch: .*" + message) as caught:
        fetch(NAME, accept_licence=True)
    assert "\n" not in str(caught.value)
    assert not (folder / NET).exists()
    if error is ConnectionError:
        assert f"{server.url}/{NET}" in str(caught.value) and str(folder) in str(caught.value)
    assert fetch(NAME, accept_licence=True)[0].read_bytes() == DATA_OF_NET


def test_a_later_call_goes_on_where_one_stopped(server, folder):
    server.faults = ["cut"] + ["503"] * 5
    with pytest.raises(ConnectionError):
        fetch(NAME, accept_licence=True)
    assert (folder / f"{NET}.part").stat().st_size == len(DATA_OF_NET) // 2
    fetch(NAME, accept_licence=True)
    assert server.requests[6][1] == f"bytes={len(DATA_OF_NET) // 2}-"
    assert (folder / NET).read_bytes() == DATA_OF_NET


def test_a_download_that_was_complete_but_has_no_name_yet(server, folder):
    folder.mkdir()
    (folder / f"{NET}.part").write_bytes(DATA_OF_NET)
    (folder / f"{NET}.part.json").write_text('{"version": "\\"1\\""}')
    assert fetch(NET, accept_licence=True)[0].read_bytes() == DATA_OF_NET
    assert server.requests == [(f"/weights/{NET}", f"bytes={len(DATA_OF_NET)}-")]


def test_what_was_begun_of_an_unknown_version_is_begun_anew(server, folder):
    folder.mkdir()
    (folder / f"{NET}.part").write_bytes(b"something else")
    assert fetch(NET, accept_licence=True)[0].read_bytes() == DATA_OF_NET
    assert server.requests == [(f"/weights/{NET}", None)]


def _fetch_in_a_process(results):
    results.put(str(fetch(NET, accept_licence=True)[0]))


def test_processes_take_turns(server, folder):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_fetch_in_a_process, args=[results]) for _ in range(3)]
    for process in processes:
        process.start()
    assert {results.get(timeout=60) for _ in processes} == {str(folder / NET)}
    for process in processes:
        process.join(60)
    assert len(server.requests) == 1 and (folder / NET).read_bytes() == DATA_OF_NET
    assert not [p for p in folder.iterdir() if "part" in p.name]


def test_without_a_network_there_is_one_sentence(folder):
    with pytest.raises(ConnectionError) as caught:
        fetch(NAME, accept_licence=True)
    message = str(caught.value)
    assert message.startswith(f"fetch: {NET} must be there or be downloaded, got no connection (")
    assert message.endswith(
        f"; download http://127.0.0.1:9/weights/{NET} and put it into {folder}, or name its "
        "folder in AGF_MODELS"
    )


def test_a_changed_file_is_noticed(folder, monkeypatch):
    folder.mkdir()
    (folder / NET).write_bytes(DATA_OF_NET)
    assert autoguide_fast.load(NET).label_dim == 10
    (folder / NET).write_bytes((DATA / "latents-unlabelled.pkl").read_bytes())
    with pytest.raises(ValueError, match=r"load: .* must have the contents that it had at first "):
        autoguide_fast.load(NET)
    (folder / f"{NET}.sha256").unlink()
    assert autoguide_fast.load(NET).label_dim == 0


def test_no_room_is_a_sentence(server, folder, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"fetch: .* got No space left on device; make room, or name"):
        fetch(NAME, accept_licence=True)


def test_unknown_names():
    with pytest.raises(ValueError, match="fetch: name must be a published preset, got 'edm2-x'"):
        fetch("edm2-x")
    with pytest.raises(ValueError, match="or see `autoguide-fast presets`"):
        sample("edm2-x", seeds=[0])
