"""What a source of files is, and what its files are labelled."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .digest import digest
from .errors import BrokenFileError
from .saved import SavedStore, is_saved
from .stores import FolderStore, ZipStore

LABELS = "dataset.json"
LATENTS = ".npy"
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
PARTIAL = ".partial"  # what is appended to the name of a conversion's output until it is whole
_UNLABELLED = re.compile(r"\d{5}/img\d{8}\.\w+")  # the numbered files of a conversion


@dataclass(frozen=True)
class Source:
    """Files with their labels.

    kind: what it is, in words. store: where the files lie. names: those that are images or
    latents, sorted. labels: int64 [N] >= 0, or None. classes: names of the classes, or None.
    """

    kind: str
    store: FolderStore | ZipStore | SavedStore
    names: list[str]
    labels: np.ndarray | None = None
    classes: list[str] | None = None

    def read(self, index: int) -> bytes:
        """Content of a file; raises BrokenFileError."""
        return self.store.read(self.names[index])

    def where(self, index: int) -> str:
        """What messages call a file."""
        return self.store.where(self.names[index])

    def digest(self) -> str:
        """A checksum of the files' names and marks, and of the labels; raises BrokenFileError."""
        return digest("\n".join(self.names), self.store.marks(self.names), self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 where there are no labels."""
        if self.labels is None:
            return 0
        return max(int(self.labels.max()) + 1, len(self.classes or ()))


def open_source(path: str | os.PathLike) -> Source:
    """Finds out what `path` is and lists its files.

    - a folder or ZIP file with `dataset.json`: {"labels": [[name, class], ...]}, or null for none;
    - a folder or ZIP file with a folder for each class, numbered in the order of their names;
    - any other folder or ZIP file of images: without labels;
    - a dataset that Hugging Face's `datasets` saved to disk.

    Raises:
        ValueError: it is none of these, is empty, or its labels do not fit its files.
    """
    path = Path(path)
    if not path.exists():
        partial = path.with_name(path.name + PARTIAL)
        raise ValueError(
            f"dataset: source must be a folder or a ZIP file, got {path}, which does not exist; "
            + (f"repeat the command that began {partial}" if partial.exists() else
               "check the spelling, or make it with `autoguide-fast dataset convert`")
        )  # fmt: skip
    if path.is_dir() and is_saved(path):
        store = SavedStore(path)
        _not_empty(path, store.names)
        labels = _checked(path, store.labels)
        return Source("Hugging Face dataset", store, store.names, labels, store.classes)
    if path.is_dir():
        kind, store = "folder", FolderStore(path)
    else:
        kind, store = "ZIP file", ZipStore(path)
    names = [n for n in store.names if n.lower().endswith((*IMAGES, LATENTS))]
    _not_empty(path, names)
    if LABELS in store.names:
        labels, classes = _listed_labels(store, names)
        return Source(f"{kind} with {LABELS}", store, names, _checked(path, labels), classes)
    if all("/" in name for name in names) and not all(map(_UNLABELLED.fullmatch, names)):
        folders = [name.split("/")[0] for name in names]
        classes, labels = np.unique(folders, return_inverse=True)
        labels = labels.reshape(-1).astype(np.int64)
        return Source(f"{kind} with a folder for each class", store, names, labels,
                      classes.tolist())  # fmt: skip
    return Source(f"{kind} without labels", store, names)


def _not_empty(path: Path, names: list[str]) -> None:
    if not names:
        raise ValueError(
            f"dataset: source must hold images ({', '.join(IMAGES)}) or latents ({LATENTS}), got "
            f"{path} without any; name the folder that has them"
        )


def _listed_labels(store, names: list[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels in `dataset.json`, in the order of `names`, and the classes' names if it has them."""
    where = store.where(LABELS)
    try:
        content = json.loads(store.read(LABELS))
        listed = content.get("labels")
        classes = content.get("classes")
        if listed is None:
            return None, None
        table = {str(name): label for name, label in listed}
    except BrokenFileError:
        raise
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f'dataset: {where} must read {{"labels": [[file name, class], ...]}}, got what cannot '
            f"be read so ({error}); write it again"
        ) from None
    _no_stranger(where, "list a class for every file", [n for n in names if n not in table],
                 "without", "add them, or remove the files")  # fmt: skip
    known = set(names)
    _no_stranger(where, "list files that are there", [n for n in table if n not in known],
                 "that are not", "copy them, or remove the entries")  # fmt: skip
    labels = [table[name] for name in names]
    odd = [i for i, label in enumerate(labels) if type(label) is not int]
    if odd:
        raise ValueError(
            f"dataset: {where} must list integers as classes, got {labels[odd[0]]!r} for "
            f"{names[odd[0]]}; number the classes from 0"
        )
    return np.array(labels, np.int64), classes


def _no_stranger(where: str, rule: str, strangers: list[str], how: str, remedy: str) -> None:
    if strangers:
        raise ValueError(
            f"dataset: {where} must {rule}, got {len(strangers)} {how}, such as {strangers[0]}; "
            f"{remedy}"
        )


def _checked(path: Path, labels: np.ndarray | None) -> np.ndarray | None:
    if labels is not None and labels.min() < 0:
        raise ValueError(
            f"dataset: {path} must number its classes from 0, got class {labels.min()}; leave "
            "files without a class out"
        )
    return labels
