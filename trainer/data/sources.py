"""What a source of files is, and what its files are labelled."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .digest import digest
from .errors import BrokenFileError
from .layout import LABELS, find_root, wrapper_of_numbered
from .saved import SavedStore, is_saved
from .stores import FolderStore, ZipStore

LATENTS = ".npy"
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
PARTIAL = ".partial"  # what is appended to the name of a conversion's output until it is whole
# A class is a number below this: a net has weights for every number below its number of classes.
MAX_CLASSES = 1_000_000
_NUMBER = re.compile(r"[0-9]{1,18}")


class Origin(NamedTuple):
    """What a file held when it was read: a checksum of its stamp, and that and size of its bytes.

    All fit into 64 bits without a sign.
    """

    stamp: int
    checksum: int
    size: int


@dataclass(frozen=True)
class Source:
    """Files with their labels.

    kind: what it is, in words. store: where the files lie. root: the folder in there that has
    them all, '' or with a slash at its end. names: those that are images or latents, from the root
    on, sorted. labels: int64 [N] >= 0, or None. classes: names of the classes, or None.
    renumbered: whether the classes are folders in the order of numbers, which is not that of their
    names. notes: what a user should be told.
    """

    kind: str
    store: FolderStore | ZipStore | SavedStore
    names: list[str]
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    root: str = ""
    renumbered: bool = False
    notes: list[str] = field(default_factory=list)

    def read(self, index: int) -> bytes:
        """Content of a file; raises BrokenFileError."""
        return self.store.read(self.root + self.names[index])

    def read_with_origin(self, index: int) -> tuple[bytes, Origin]:
        """Content of a file, and what tells later whether it has changed; raises BrokenFileError.

        The stamp is taken first: what is written to meanwhile changes it.
        """
        stamp = self._stamp(index)
        data = self.read(index)
        return data, Origin(stamp, zlib.crc32(data), len(data))

    def unchanged(self, index: int, origin: Origin) -> bool:
        """Whether a file holds what it held; its bytes decide, and are read where need be."""
        try:
            if self._stamp(index) == origin.stamp:
                return True
            data = self.read(index)
        except BrokenFileError:
            return False
        return (zlib.crc32(data), len(data)) == origin[1:]

    def _stamp(self, index: int) -> int:
        return int(digest(repr(self.store.stamp(self.root + self.names[index]))), 16)

    def where(self, index: int) -> str:
        """What messages call a file."""
        return self.store.where(self.root + self.names[index])

    def digest(self) -> str:
        """A checksum of the files' names and contents, and of the labels; raises BrokenFileError.

        Equal for a folder, a copy of it and a ZIP file of it. All files of a folder are read.
        """
        marks = self.store.marks([self.root + name for name in self.names])
        return digest("\n".join(self.names), marks, self.labels)

    def stamp(self) -> str | None:
        """A checksum that stays only while no file was written to; None where `digest` is as cheap.

        Raises:
            BrokenFileError: a file is no longer there.
        """
        if not self.store.reads_for_marks:
            return None
        stamps = [self.store.stamp(self.root + name) for name in self.names]
        return digest("\n".join(self.names), np.array(stamps, np.uint64), self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 where there are no labels."""
        if self.labels is None:
            return 0
        return max(int(self.labels.max()) + 1, len(self.classes or ()))


def open_source(path: str | os.PathLike) -> Source:
    """Finds out what `path` is and lists its files.

    - a folder or ZIP file with `dataset.json`: {"labels": [[name, class], ...]}, or null for none;
    - a folder or ZIP file with a folder for each class, numbered in the order of their names, or
      as numbers where all are;
    - any other folder or ZIP file of images: without labels;
    - a dataset that Hugging Face's `datasets` saved to disk.

    Folders that wrap all of the first three are passed over.

    Raises:
        ValueError: it is none of these or several, is empty, or its labels do not fit its files.
    """
    path = Path(path)
    if not path.exists():
        partial = path.with_name(path.name + PARTIAL)
        raise ValueError(
            f"dataset: source must be a folder or a ZIP file, got {path}, which does not exist; "
            + (
                f"repeat the command that began {partial}"
                if partial.exists()
                else "check the spelling, or make it with `autoguide-fast dataset convert`"
            )
        )
    if path.is_dir() and is_saved(path):
        store = SavedStore(path)
        _not_empty(path, store.names)
        labels, classes = _checked(str(path), store.labels, store.classes)
        return Source("Hugging Face dataset", store, store.names, labels, classes)
    if path.is_dir():
        kind, store = "folder", FolderStore(path)
    else:
        kind, store = "ZIP file", ZipStore(path)
    files = [n for n in store.names if n.lower().endswith((*IMAGES, LATENTS))]
    _not_empty(path, files)
    root = find_root(path, store.names, files)
    names = [name[len(root) :] for name in files] if root else files
    inside, notes = f", in {root}" if root else "", list(store.notes)
    if root + LABELS in store.names:
        where = store.where(root + LABELS)
        labels, classes = _checked(where, *_listed_labels(store, root, names))
        return Source(
            f"{kind} with {LABELS}{inside}", store, names, labels, classes, root, notes=notes
        )
    if all("/" in name for name in names) and wrapper_of_numbered(names) is None:
        folders = [name.split("/")[0] for name in names]
        classes = sorted(set(folders))
        if renumbered := (by_number := _by_number(classes)) != classes:
            i = next(i for i, name in enumerate(classes) if name != by_number[i])
            notes.append(
                f"the folders for classes are numbers and count as such: class {i} is "
                f"{by_number[i]}, not {classes[i]}"
            )
            classes = by_number
        number = {name: i for i, name in enumerate(classes)}
        labels = np.array([number[folder] for folder in folders], np.int64)
        labels, classes = _checked(str(path), labels, classes)
        return Source(
            f"{kind} with a folder for each class{inside}",
            store,
            names,
            labels,
            classes,
            root,
            renumbered,
            notes,
        )
    return Source(f"{kind} without labels{inside}", store, names, root=root, notes=notes)


def _by_number(folders: list[str]) -> list[str]:
    """Names in the order of the numbers they are, where all are; else as they come."""
    if not all(map(_NUMBER.fullmatch, folders)):
        return folders
    return sorted(folders, key=lambda name: (int(name), name))


def _not_empty(path: Path, names: list[str]) -> None:
    if not names:
        raise ValueError(
            f"dataset: source must hold images ({', '.join(IMAGES)}) or latents ({LATENTS}), got "
            f"{path} without any; name the folder that has them"
        )


def _listed_labels(
    store: FolderStore | ZipStore, root: str, names: list[str]
) -> tuple[list[int] | None, object]:
    """Labels in `dataset.json`, in the order of `names`, and what it has as the classes' names."""
    where = store.where(root + LABELS)
    try:
        content = json.loads(store.read(root + LABELS))
        listed = content.get("labels")
        classes = content.get("classes")
        if listed is None:
            return None, None
        listed = [(str(name), label) for name, label in listed]
    except BrokenFileError:
        raise
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f'dataset: {where} must read {{"labels": [[file name, class], ...]}}, got what cannot '
            f"be read so ({error}); write it again"
        ) from None
    known: set[str] = set(names)
    table: dict[str, Any] = {}
    for name, label in listed:
        if name not in known:
            name = name.replace("\\", "/").removeprefix("./")  # as other systems write it
        if table.setdefault(name, label) != label:
            raise ValueError(
                f"dataset: {where} must list a file with one class, got {name} with {table[name]} "
                f"and {label}; remove one of the entries"
            )
    _no_stranger(
        where,
        "list a class for every file",
        [n for n in names if n not in table],
        "without",
        "add them, or remove the files",
    )
    _no_stranger(
        where,
        "list files that are there",
        [n for n in table if n not in known],
        "that are not",
        "copy them, or remove the entries",
    )
    labels = [table[name] for name in names]
    odd = [i for i, label in enumerate(labels) if type(label) is not int]
    if odd:
        raise ValueError(
            f"dataset: {where} must list integers as classes, got {labels[odd[0]]!r} for "
            f"{names[odd[0]]}; number the classes from 0"
        )
    return labels, classes


def _no_stranger(where: str, rule: str, strangers: list[str], how: str, remedy: str) -> None:
    if strangers:
        raise ValueError(
            f"dataset: {where} must {rule}, got {len(strangers)} {how}, such as {strangers[0]}; "
            f"{remedy}"
        )


def _checked(
    where: str, labels: Sequence[int] | np.ndarray | None, classes: object
) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels as int64 and the classes' names, or None; raises ValueError where they do not fit."""
    if labels is None:
        return None, None
    least, most = int(min(labels)), int(max(labels))
    if least < 0:
        raise ValueError(
            f"dataset: {where} must number its classes from 0, got class {least}; leave files "
            "without a class out"
        )
    if most >= MAX_CLASSES:
        raise ValueError(
            f"dataset: {where} must number its classes below {MAX_CLASSES}, got class {most}; "
            "number them 0, 1, 2 and so on"
        )
    if classes is not None:
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError(
                f"dataset: {where} must list the names of its classes as texts, got {classes!r}; "
                'write "classes": ["cat", "dog"]'
            )
        if len(classes) <= most:
            raise ValueError(
                f"dataset: {where} must name every class, got {len(classes)} names and class "
                f'{most}; add the missing ones, or leave out "classes"'
            )
    return np.asarray(labels, np.int64), classes
