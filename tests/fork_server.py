"""Processes that start in milliseconds, forked from one that has imported and run everything once.

Tests start them by `ForkServer`. Run as a program, this file is the process that forks.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WARM = "--channels 4 --channels-per-head 4 --batch 16 --duration 32 --snapshots 1 --quiet"


@dataclass
class Ended:
    """How processes ended: their exit codes by rank, negative for signals, and what all wrote."""

    codes: list[int]
    stdout: str
    stderr: str

    @property
    def returncode(self) -> int:
        """0, or the code of the first process that failed."""
        return next((code for code in self.codes if code), 0)


class ForkServer:
    """Forks processes from one that is warm; without GPUs, whose state no fork survives."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._folder = tempfile.TemporaryDirectory()

    def start(self, target: str, *arguments: Any, processes: int = 0, **environment: str) -> int:
        """Start `target`, "module:function", with arguments that JSON knows; returns its number.

        With `processes` it starts so many, which find each other as under torchrun.
        """
        files = [str(Path(self._folder.name) / name) for name in ("stdout", "stderr")]
        for file in files:
            Path(file).write_text("")  # there even if the process is killed before it begins
        self._files = files
        request = [target, list(arguments), processes, environment, files]
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def wait(self) -> Ended:
        """Wait until what was started last has ended."""
        codes = json.loads(self._server.stdout.readline())
        return Ended(codes, *(Path(file).read_text() for file in self._files))

    def run(self, target: str, *arguments: Any, processes: int = 0, **environment: str) -> Ended:
        """Start and wait, see there."""
        self.start(target, *arguments, processes=processes, **environment)
        return self.wait()

    def close(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.communicate()
        self._folder.cleanup()


def command(*arguments: Any) -> int:
    """Run `autoguide-fast`; returns its exit code."""
    from autoguide_fast.cli import main

    return main([str(argument) for argument in arguments])


def _child(target: str, arguments: list, environment: dict[str, str], files: list[str]) -> None:
    code = 99
    try:
        os.environ.update(environment)
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
        faulthandler.enable()  # where it was, if it crashes
        module, _, function = target.partition(":")
        code = getattr(importlib.import_module(module), function)(*arguments) or 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ranks(processes: int) -> list[dict[str, str]]:
    """What torchrun puts into the environment of each process."""
    if not processes:
        return [{}]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    job = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    job["TORCHELASTIC_RUN_ID"] = "forked"
    return [{**job, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)]


def _serve() -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        assert command("train", "--out", f"{folder}/run", *_WARM.split()) == 0
    for line in sys.stdin:
        target, arguments, processes, environment, files = json.loads(line)
        children = []
        for rank in _ranks(processes):
            children.append(os.fork())
            if children[-1] == 0:
                _child(target, arguments, {**environment, **rank}, files)
        print(children[0], file=channel, flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(codes, file=channel, flush=True)


if __name__ == "__main__":
    _serve()
