"""Datasets of Hugging Face's library `datasets`, saved to disk with `save_to_disk`."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .errors import BrokenFileError

MARKS = ("dataset_info.json", "state.json")  # in the folder of one split
SPLITS_MARK = "dataset_dict.json"  # in a folder of several
_LABEL_NAMES = ("label", "labels", "class")


class SavedStore:
    """The images of a saved dataset, as files named by their row.

    Raises:
        ValueError: `datasets` is not installed, or there is no column of images.

    labels: int64 [N], or None; classes: their names, or None.
    """

    reads_for_marks = False
    notes: tuple[str, ...] = ()

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._open()
        self.names = [f"{row:08d}" for row in range(len(self._table))]

    def _open(self) -> None:
        datasets = _library(self.path)
        try:
            table = datasets.load_from_disk(str(self.path))
        except Exception as error:  # the library raises what its parts raise
            raise ValueError(
                f"dataset: {self.path} must be a dataset that `save_to_disk` wrote, got "
                f"{type(error).__name__}: {error}; save it again"
            ) from None
        columns = [k for k, v in table.features.items() if isinstance(v, datasets.Image)]
        if len(columns) != 1:
            raise ValueError(
                f"dataset: {self.path} must have one column of images, got "
                f"{', '.join(columns) or 'none'} among {', '.join(table.features)}; keep one with "
                "`select_columns`, or make one with `cast_column(..., datasets.Image())`"
            )
        self.labels, self.classes = _labels(datasets, table, self.path)
        self._fingerprint = table._fingerprint
        self._column = columns[0]
        # Encoded bytes, so that one decoder serves every kind of source.
        self._table = table.select_columns(columns).cast_column(
            columns[0], datasets.Image(decode=False)
        )

    def read(self, name: str) -> bytes:
        """The encoded image of a row.

        Raises:
            BrokenFileError: it is missing, or lies in a file that cannot be read.
        """
        value = self._table[int(name)][self._column]
        if value and value.get("bytes") is not None:
            return value["bytes"]
        try:
            return Path(value["path"]).read_bytes()
        except (OSError, TypeError, KeyError) as error:
            reason = getattr(error, "strerror", None) or "an empty cell"
            raise BrokenFileError(self.where(name), "an image", reason) from None

    def where(self, name: str) -> str:
        """What messages call the row."""
        return f"{self.path}, row {int(name)}"

    def marks(self, names: list[str]) -> str:
        """The fingerprint that the library saves with a dataset, which stands for all rows."""
        return self._fingerprint

    def stamp(self, name: str) -> tuple[str, ...]:
        """The same, of every row."""
        return (self._fingerprint,)

    def __getstate__(self) -> dict:
        return {"path": self.path, "names": self.names}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()


def is_saved(folder: Path) -> bool:
    """Whether a folder is a saved dataset.

    Raises:
        ValueError: it holds the splits of one.
    """
    if (folder / SPLITS_MARK).is_file():
        splits = sorted(p.name for p in folder.iterdir() if is_saved(p))
        raise ValueError(
            f"dataset: source must be one split, got {folder} with {', '.join(splits) or 'none'}; "
            f"name one, such as {folder / (splits or ['train'])[0]}"
        )
    return all((folder / mark).is_file() for mark in MARKS)


def _library(path: Path) -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"dataset: {path} needs the package `datasets` to be read, got an environment without "
            "it; pip install 'autoguide_fast[datasets]'"
        ) from None
    return datasets


def _labels(
    datasets: ModuleType, table: Any, path: Path
) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels and names of classes, from the one column of labels there is."""
    features = table.features
    columns = [k for k, v in features.items() if isinstance(v, datasets.ClassLabel)]
    if not columns:
        columns = [
            k for k in _LABEL_NAMES if getattr(features.get(k), "dtype", "").startswith("int")
        ]
    if not columns:
        return None, None
    if len(columns) > 1:
        raise ValueError(
            f"dataset: {path} must have one column of labels, got {', '.join(columns)}; drop the "
            "others with `remove_columns`"
        )
    values = table.with_format("numpy")[columns[0]][:]
    return np.asarray(values, np.int64), list(getattr(features[columns[0]], "names", [])) or None
