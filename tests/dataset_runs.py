"""Running `autoguide-fast dataset`, and looking at what it wrote, for the tests of that command."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from autoguide_fast.cli import main

OUTPUTS = ["out", "out.zip"]


def run(capsys, *arguments):
    """Run `dataset ...`; return its exit code, standard output and standard error."""
    try:
        code = main(["dataset", *map(str, arguments)])
    except SystemExit as stop:  # argparse leaves this way
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def content(path: Path) -> dict[str, bytes]:
    """All files of a folder or ZIP file."""
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.is_file()]
        return {p.relative_to(path).as_posix(): p.read_bytes() for p in files}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def beside(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir() if p.name.startswith(path.name))


def array(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


class Stopped(BaseException):
    """Stands for a process that ends between two files."""
