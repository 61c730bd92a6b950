"""What a run tells while it goes: JSON lines, TensorBoard events, a progress bar."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from pathlib import Path

import torch

from .durable import write_atomically

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"


class RunLog:
    """The log of a job, `log.jsonl`, and TensorBoard events beside it where that is installed.

    A line is a JSON object: `net` ('main' or 'guide'), `nimg`, `loss` (mean since the last line),
    `lr`, `gradient_norm`, `images_per_s`, `seconds` of training, `repaired_steps`,
    `skipped_steps`, `memory_mib` (peak of the process; on a GPU, of its tensors there).

    Args:
        out: the folder of the job.
        active: False writes nothing, for processes other than the first.
    """

    def __init__(self, out: Path, active: bool = True) -> None:
        self.path, self.active = out / LOG, active
        self._board = None
        if active:
            make_folder(out)
            self._board = _tensorboard(out / TENSORBOARD)

    def rewind(self, net: str, nimg: int) -> None:
        """Drops what was logged of a net after `nimg`, and a line that was cut short.

        A run that was killed goes on from its last checkpoint, which is older than its log.
        """
        if not self.active or not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _belongs(line, net, nimg)]
        if kept != lines:
            write_atomically(self.path, lambda path: path.write_text("".join(kept)))

    def write(self, **row) -> None:
        """Appends a line."""
        if not self.active:
            return
        # JSON has no NaN; a number that is not finite becomes null.
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v
               for k, v in row.items()}  # fmt: skip
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OSError(
                f"train: the log {self.path} must be written, got {error.strerror}; what was saved "
                "before is intact: make room, then repeat the "
                "command with --resume auto"
            ) from error
        if self._board is not None:
            for name, value in row.items():
                if name not in ("net", "nimg") and value is not None:
                    self._board.add_scalar(f"{row['net']}/{name}", value, row["nimg"])

    def picture(self, net: str, nimg: int, image) -> None:
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
            f"({error.strerror or error}); choose another"
        ) from error


def read_log(out: str | os.PathLike) -> list[dict]:
    """The lines of a job's log; one that is cut short is left out.

    Raises:
        ValueError: the folder holds no log.
    """
    path = Path(out) / LOG
    if not path.is_file():
        raise ValueError(
            f"plot: run must be a folder that `autoguide-fast train` wrote, got {out} without "
            f"{LOG}; train there first"
        )
    rows = [_parse(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row is not None]


def progress_bar(net: str, duration: int, nimg: int, show: bool):
    """The bar of one net, with loss, images per second and time left."""
    from tqdm import tqdm

    return tqdm(total=duration, initial=nimg, unit="img", unit_scale=True, desc=net,
                disable=not show, file=sys.stderr, mininterval=0.5)  # fmt: skip


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has had, in MiB, that of its GPU where it has one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / (1 << 20)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _parse(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _belongs(line: str, net: str, nimg: int) -> bool:
    row = _parse(line) if line.endswith("\n") else None
    return row is not None and (row.get("net", net) != net or row["nimg"] <= nimg)


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
