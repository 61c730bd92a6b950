"""Networks of the Hugging Face Hub, read from and written to a local server in its place."""

import errno
import functools
import hashlib
import http.server
import subprocess
import sys
import threading
from urllib.parse import unquote

import pytest
import torch
from nets import tiny

from autoguide_fast import checkpoints, load
from autoguide_fast.checkpoints import hub
from autoguide_fast.networks import Precond

huggingface_hub = pytest.importorskip("huggingface_hub")


class HubServer:
    """Serves files by `user/name/revision/file`, with the headers that the hub sends."""

    def __init__(self):
        self.files, self.fails = {}, None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self, body=True):
                outer.answer(self, body)

            def do_HEAD(self):
                self.do_GET(body=False)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler, body):
        user, name, _, revision, file = unquote(handler.path.strip("/")).split("/", 4)
        code = None
        if not any(key.startswith(f"{user}/{name}/") for key in self.files):
            code = "RepoNotFound"
        elif not any(key.startswith(f"{user}/{name}/{revision}/") for key in self.files):
            code = "RevisionNotFound"
        elif f"{user}/{name}/{revision}/{file}" not in self.files:
            code = "EntryNotFound"
        if self.fails or code:
            handler.send_response(self.fails or 404)
            if code:
                handler.send_header("X-Error-Code", code)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        data = self.files[f"{user}/{name}/{revision}/{file}"]
        handler.send_response(200)
        handler.send_header("ETag", f'"{hash(data) & 0xFFFFFFFF:x}"')
        handler.send_header("X-Repo-Commit", hashlib.sha1(revision.encode()).hexdigest())
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if body:
            handler.wfile.write(data)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub at a local address, and an empty cache."""
    made = HubServer()
    options = {"endpoint": made.url, "cache_dir": tmp_path / "cache"}
    download = functools.partial(huggingface_hub.hf_hub_download, **options)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def stored(server, tmp_path):
    """A net that the repository `someone/net` holds, and another at its revision `old`."""
    nets = {"main": tiny(), "old": tiny(seed=1)}
    for revision, net in nets.items():
        net.save_pretrained(tmp_path / revision, note=revision)
        data = (tmp_path / revision / hub.FILE).read_bytes()
        server.files[f"someone/net/{revision}/{hub.FILE}"] = data
    server.files["someone/empty/main/README.md"] = b"nothing"
    return nets


def same(a, b):
    b = b.state_dict()
    return all(torch.equal(value, b[name]) for name, value in a.state_dict().items())


def test_folders_hold_a_net(tmp_path):
    net = tiny()
    net.save_pretrained(tmp_path / "a" / "b", note="kept")
    for again in (Precond.from_pretrained(tmp_path / "a" / "b"), load(tmp_path / "a" / "b")):
        assert same(net, again) and again.info == {"note": "kept"}
    with pytest.raises(ValueError, match=r"must be a folder that holds model.safetensors"):
        Precond.from_pretrained(tmp_path / "a")


def test_repositories_are_read(stored):
    for net in (load("someone/net"), Precond.from_pretrained("someone/net")):
        assert same(stored["main"], net) and net.info == {"note": "main"}
    assert same(stored["old"], Precond.from_pretrained("someone/net", revision="old"))


def test_sample_takes_repositories(stored):
    import autoguide_fast

    options = {"seeds": [0, 1], "num_steps": 2, "raw": True}
    expected = autoguide_fast.sample(stored["main"], **options)
    assert torch.equal(autoguide_fast.sample("someone/net", **options), expected)


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("someone/other", None, r"^load: 'someone/other' must be a bundled name, an existing file"),
        ("someone/net", "new", r"repository of the Hugging Face Hub, got none of them"),
        ("someone/empty", None, r"the repository 'someone/empty' must hold model.safetensors"),
    ],
)
def test_what_is_not_there_is_said(stored, name, revision, message):
    with pytest.raises(ValueError, match=message):
        hub.download(name, "load", revision)


def test_a_hub_out_of_reach_is_said(stored, server):
    server.fails = 400  # not tried again, unlike 500
    with pytest.raises(ConnectionError, match=r"^load: 'someone/net' must be .*go online"):
        load("someone/net")


@pytest.mark.parametrize(
    "name",
    ["a/b.safetensors", "a/b.file", "a/b.pt2", "mine", "a/b/c", "/a/b", "../b", "a/b.PT", "a b/c"],
)
def test_misspelt_paths_ask_no_hub(monkeypatch, name):
    monkeypatch.setattr(hub, "download", lambda *arguments: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match=r"must be a bundled name .* or an existing file"):
        load(name)


def test_a_connection_that_breaks_is_said(stored, monkeypatch):
    def breaks(*arguments, **options):
        raise huggingface_hub.errors.HTTPError("peer closed connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", breaks)
    with pytest.raises(ConnectionError, match=r"^load: 'someone/net' must be .*peer closed.*again"):
        load("someone/net")


def test_a_full_disk_is_no_broken_connection(stored, monkeypatch):
    def fills(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fills)
    with pytest.raises(
        OSError, match=r"^load: 'someone/net' must be downloaded .*HF_HOME"
    ) as found:
        load("someone/net")
    assert not isinstance(found.value, ConnectionError)


def test_names_may_have_dots():
    assert hub.is_repository("some-one/net.v1.5") and hub.is_repository("a/b_2")


def test_what_is_missing_in_a_folder_asks_no_hub(monkeypatch, tmp_path):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download", lambda *arguments: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match=r"must be a bundled name .* or an existing file"):
        load("runs/mine")


def test_without_the_library_names_are_paths():
    code = """
import sys
sys.modules["huggingface_hub"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "huggingface_hub" else found(name)
from autoguide_fast import load
from autoguide_fast.networks import Precond
for function in (load, Precond.from_pretrained):
    try:
        function("someone/net")
    except ValueError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert "existing file, got 'someone/net'" in first
    assert "huggingface_hub is installed (pip install it), got 'someone/net'" in second


class Api:
    """What `push_to_hub` asks of the hub, kept: who uploads has an account there."""

    card = False

    def __init__(self, token):
        self.token = token
        Api.last = self

    def create_repo(self, name, private, exist_ok):
        self.made = private, exist_ok
        return type("Url", (), {"repo_id": name if "/" in name else f"me/{name}"})

    def file_exists(self, name, path):
        return self.card

    def upload_folder(self, repo_id, folder_path, commit_message):
        from pathlib import Path

        self.uploaded = repo_id, commit_message
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return f"https://hub/{repo_id}/commit/1"


@pytest.mark.parametrize("card", [False, True])
def test_a_net_is_uploaded(monkeypatch, tmp_path, card):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "card", card)
    net = tiny()
    address = net.push_to_hub("net", private=True, token="secret", note="kept")
    assert address == "https://hub/me/net/commit/1"
    assert Api.last.token == "secret" and Api.last.made == (True, True)
    files = Api.last.files
    # A card that somebody wrote is left alone.
    assert set(files) == {hub.FILE} | (set() if card else {"README.md"})
    (tmp_path / hub.FILE).write_bytes(files[hub.FILE])
    assert same(net, checkpoints.load(tmp_path / hub.FILE))
    if not card:
        assert b'load("me/net")' in files["README.md"]
