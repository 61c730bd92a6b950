"""Files that appear whole or not at all, and what to do where one cannot be written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_REMEDIES = {
    **dict.fromkeys(_NO_ROOM, "make room"),
    errno.EFBIG: "choose a place that takes larger files, or raise `ulimit -f`",
    errno.EACCES: "get permission to write there, or choose another place",
    errno.EPERM: "get permission to write there, or choose another place",
    errno.EROFS: "choose a place that is not read-only",
    errno.EEXIST: "move what is there away, or choose another name",
    errno.ENOTDIR: "move the file that is in the way, or choose another name",
    errno.EISDIR: "move the folder that is in the way, or choose another name",
    errno.ENOENT: "check the spelling, and that all folders on the way are there",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise `ulimit -n`",
    errno.EIO: "check the disk",
}
_OF_OTHERS = re.compile(r"\(os error (\d+)\)")  # as safetensors ends its sentences


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` make a file beside `path`, brings it to the disk, and renames it to `path`.

    Whatever fails, `path` holds what it held before, and nothing else is left behind. What is there
    and no file, such as /dev/null or a pipe, is written to as it is.
    """
    if path.exists() and not path.is_file():
        write(path)
        return
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        publish(temporary, path)
    except OSError as error:
        if error.errno is not None:  # the system's; a user knows the file by its own name
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Renames a finished file, with file and folder brought to the disk."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such thing
            raise
    finally:
        os.close(folder)


def with_checksum(values: dict) -> dict:
    """`values`, which JSON can hold, and an entry by which `without_checksum` proves them."""
    return {**values, "checksum": _checksum(values)}


def without_checksum(values: dict) -> dict:
    """What `with_checksum` was given; raises ValueError where it has changed since.

    What has no checksum, as files of earlier versions, is returned as it is.
    """
    rest = {name: value for name, value in values.items() if name != "checksum"}
    if "checksum" in values and values["checksum"] != _checksum(rest):
        raise ValueError("its contents do not have their checksum")
    return rest


def _checksum(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def sha256(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file, in hexadecimal, read in pieces; `progress` is told their lengths."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            if progress is not None:
                progress(len(piece))
    return digest.hexdigest()


def reason(error: Exception) -> str:
    """What the system says of a failure, without the number: `No space left on device`."""
    number = _number(error)
    return os.strerror(number) if number else " ".join(str(error).split())


def remedy(error: Exception) -> str:
    """What a user can do about a failure to write, by its kind: `make room`."""
    return _REMEDIES.get(_number(error) or 0, "choose another place")


def _number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _OF_OTHERS.search(str(error))
    return int(found[1]) if found else None
