"""A file from its address: goes on where it was cut, and appears complete or not at all."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..files import publish

if TYPE_CHECKING:
    from tqdm import tqdm

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds before another attempt, doubled each time
_PIECE = 1 << 20


_FAILURES = (
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    TimeoutError,
    ConnectionError,
)


class _Cut(Exception):  # noqa: N818
    """The connection ended before the file did."""


def download(url: str, path: Path, check: Callable[[Path], object], progress: bool = False) -> None:
    """Download `url` to `path`.

    What has come is kept in `path` with `.part` at its end, from where a later call goes on if the
    server still has the same file. Several processes take turns; who comes later finds the file.

    Args:
        url: An http or https address.
        path: The file to make. Its folder must be there.
        check: Called with the path of the whole file before it gets its name; raises where it is
            not what was asked for, and the download is thrown away.
        progress: Show a progress bar.

    Raises ConnectionError where the server cannot be reached, refuses, or goes on failing; OSError
    where the file cannot be written; what `check` raises.
    """
    part = path.with_name(f"{path.name}.part")
    with open(part, "ab") as file, _sole(file):
        if path.exists():  # another process has downloaded it meanwhile
            part.unlink(missing_ok=True)  # which opening it may have made anew
            return
        # The name may be another's by now, or gone.
        if not part.exists() or not os.path.samestat(part.stat(), os.fstat(file.fileno())):
            return download(url, path, check, progress)
        facts = part.with_name(f"{part.name}.json")
        with _bar(progress, path.name) as bar:
            _receive(url, file, facts, bar)
        try:
            check(part)
        except ValueError:
            part.unlink(missing_ok=True)
            raise
        finally:
            facts.unlink(missing_ok=True)
        publish(part, path)
    return None


def _receive(url: str, file: BinaryIO, facts: Path, bar: tqdm) -> None:
    failures, pause = 0, PAUSE
    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            _request(url, file, facts, bar)
            file.flush()
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and before:
                if error.headers.get("Content-Range", "").strip() == f"bytes */{before}":
                    return  # all of it was there
                file.truncate(0)  # and begin anew
            elif error.code < 500 and error.code not in (408, 429):
                raise ConnectionError(f"the answer {error.code} ({error.reason})") from None
            problem = f"the answer {error.code} ({error.reason})"
        except _Cut as error:
            problem = str(error)
        except _FAILURES as error:
            problem = _why(error)
        file.flush()
        failures = 0 if file.seek(0, os.SEEK_END) > before else failures + 1
        if failures >= ATTEMPTS:
            raise ConnectionError(f"{problem}, {failures} times in a row")
        if failures == 0:
            pause = PAUSE
        time.sleep(pause)
        pause *= 2


def _why(error: Exception) -> str:
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return "no answer in time"
    text = getattr(inner, "strerror", None) or " ".join(str(inner).split()) or type(inner).__name__
    return f"no connection ({text[:100]})"


def _request(url: str, file: BinaryIO, facts: Path, bar: tqdm) -> None:
    """One request for what is missing; raises `_Cut` where it ends too early."""
    have = file.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity", "User-Agent": "autoguide_fast"}
    version = _version(facts)
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    elif have:
        file.truncate(0)
        have = 0
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        start, total = _extent(response)
        if start != have:
            if start:
                raise _Cut("another part of the file than was asked for")
            file.truncate(0)
            have = 0
        tag = response.headers.get("ETag", "")
        version = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
        facts.write_text(json.dumps({"url": url, "version": version}), "utf-8")
        if total is not None:
            room = shutil.disk_usage(facts.parent).free
            if total - have > room:
                raise OSError(28, os.strerror(28), str(facts.parent))
            bar.total = total
        bar.n = have
        bar.refresh()
        while piece := response.read1(_PIECE):
            file.write(piece)
            have += len(piece)
            bar.update(len(piece))
        if total is not None and have != total:
            file.flush()
            raise _Cut(f"{have} bytes of {total}")


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where an answer begins in the file, and how long the file is, if the server says."""
    if response.status == 206:
        found = re.fullmatch(
            r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip()
        )
        if found is None:
            raise _Cut("a part of the file that does not say which")
        return int(found[1]), None if found[3] == "*" else int(found[3])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _version(facts: Path) -> str | None:
    """What the server called the version of the file that was begun, or None."""
    try:
        known = json.loads(facts.read_text("utf-8"))
        return known["version"] if isinstance(known["version"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _sole(file: BinaryIO) -> Iterator[None]:
    """The only process that writes to the open file, after those that came earlier."""
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _bar(progress: bool, name: str) -> tqdm:
    from tqdm import tqdm

    return tqdm(desc=name, unit="B", unit_scale=True, disable=not progress)
