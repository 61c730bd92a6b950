"""What a run tells while it goes: JSON lines, TensorBoard events, a progress bar."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autoguide_fast.checkpoints.run_folder import LOG, parsed_line
from autoguide_fast.files import reason, remedy, write_atomically

from .durable import not_written

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

TENSORBOARD = "tensorboard"


class RunLog:
    """The log of a job, `log.jsonl`, and TensorBoard events beside it where that is installed.

    A line is a JSON object: `net` ('main' or 'guide'), `nimg`, `loss` (mean since the last line),
    `precision` ('fp32', 'bf16' or 'fp16'), `lr`, `gradient_norm`, `images_per_s`, `seconds` of
    training, `repaired_steps`, `skipped_steps`, `memory_mib` (peak of the process; on a GPU, of its
    tensors there), and `labels_dropped` (images since the last line) where labels are dropped.

    Args:
        out: the folder of the job.
        active: False writes nothing, for processes other than the first.
    """

    def __init__(self, out: Path, active: bool = True) -> None:
        self.path, self.active = out / LOG, active
        self._board: SummaryWriter | None = None
        if active:
            make_folder(out)
            self._board = _tensorboard(out / TENSORBOARD)

    def rewind(self, net: str, nimg: int) -> None:
        """Drops what was logged of a net after `nimg`, and a line that was cut short.

        A run that was killed goes on from its last checkpoint, which is older than its log.
        """
        if not self.active or not self.path.is_file():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        rows = [parsed_line(line) for line in lines]
        damaged = sum(row is None for row in rows[:-1])
        if damaged:
            print(
                f"train: the log {self.path} is damaged; {damaged} of its lines are left out",
                file=sys.stderr,
            )
        kept = [
            line
            for line, row in zip(lines, rows, strict=True)
            if row is not None
            and line.endswith(b"\n")
            and (row["net"] != net or row["nimg"] <= nimg)
        ]
        if kept != lines:
            write_atomically(self.path, lambda path: path.write_bytes(b"".join(kept)))

    def write(self, **row: Any) -> None:
        """Appends a line."""
        if not self.active:
            return
        # JSON has no NaN; a number that is not finite becomes null.
        row = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise not_written(f"the log {self.path} must be written", error) from error
        if self._board is not None:
            for name, value in row.items():
                if name != "nimg" and isinstance(value, int | float):
                    self._board.add_scalar(f"{row['net']}/{name}", value, row["nimg"])

    def picture(self, net: str, nimg: int, image: Picture) -> None:
        """Shows a `PIL.Image` of samples in TensorBoard."""
        if self._board is not None:
            import numpy as np

            pixels = np.asarray(image.convert("RGB"))
            self._board.add_image(f"{net}/samples", pixels, nimg, dataformats="HWC")

    def close(self) -> None:
        """Finishes the TensorBoard file."""
        if self._board is not None:
            self._board.close()


def make_folder(out: Path) -> None:
    """Makes the folder of a run; raises OSError, in a sentence, where that is not possible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OSError(
            f"train: out must be a folder that can be written, got {out} "
            f"({reason(error)}); {remedy(error)}"
        ) from error


def last_logged(out: Path, net: str) -> int:
    """The most images of a net that the log of a job knows of; 0 if it knows none."""
    path = out / LOG
    rows = map(parsed_line, path.read_bytes().splitlines()) if path.is_file() else ()
    return max((row["nimg"] for row in rows if row is not None and row["net"] == net), default=0)


def progress_bar(net: str, duration: int, nimg: int, show: bool) -> tqdm:
    """The bar of one net, with loss, images per second and time left."""
    from tqdm import tqdm

    return tqdm(
        total=duration,
        initial=nimg,
        unit="img",
        unit_scale=True,
        desc=net,
        disable=not show,
        file=sys.stderr,
        mininterval=0.5,
    )


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has had, in MiB, that of its GPU where it has one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / (1 << 20)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _tensorboard(folder: Path) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
