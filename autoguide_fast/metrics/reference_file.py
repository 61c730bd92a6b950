"""Reference statistics in files: ours with features, labels and protocol, and those of others."""

from __future__ import annotations

import functools
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.statistics import read_statistics
from ..files import sha256, write_atomically
from .detectors import Detector
from .features import as_features
from .frechet import feature_statistics
from .names import statistics_name

Gaussian = tuple[np.ndarray, np.ndarray]  # mean [D] and covariance [D, D]


class ReferenceFile:
    """What real images are like, as a file says it.

    `.npz` files of `write_reference`; `.pkl` and `.npz` of the reference implementation; the `.npz`
    of ADM's evaluator (`mu` and `sigma`, which are of Inception). Arrays are read when they are
    asked for.

    Args:
        path: the file.

    Raises:
        ValueError: it is none of these, or damaged.

    Attributes:
        path; sha256: of the file; protocol: how it was made, a dict, or None in files of others.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(
                f"evaluate: --ref must be a file of reference statistics, got {self.path}, which "
                "does not exist; make one with `autoguide-fast evaluate ref`"
            )
        self.sha256 = sha256(self.path)
        self._names: set[str] = set()
        self._known: dict[str, np.ndarray] = {}
        self.protocol: dict | None = None
        if self.path.suffix.lower() == ".npz":
            with self._opened() as file:
                self._names = set(file.files)
                if "protocol" in self._names:
                    self.protocol = json.loads(str(file["protocol"]))
            self.kinds = sorted(n.removesuffix("/mu") for n in self._names if n.endswith("/mu"))
            self.kinds += ["fid"] * ({"mu", "sigma"} <= self._names)
            if not self.kinds:
                images = "arr_0" in self._names
                raise ValueError(
                    f"evaluate: --ref must hold statistics, got {self.path} with "
                    f"{', '.join(sorted(self._names)[:5]) or 'nothing'}; "
                    + (
                        f"make them of its images: autoguide-fast evaluate ref --data {self.path}"
                        if images
                        else "make one with `autoguide-fast evaluate ref`"
                    )
                )
        else:
            self.kinds = sorted(self._others)

    @functools.cached_property
    def _others(self) -> dict[str, dict[str, np.ndarray]]:
        """Statistics of a file of the reference implementation, or of ADM."""
        return read_statistics(self.path)

    def _opened(self) -> np.lib.npyio.NpzFile:
        try:
            return np.load(self.path, allow_pickle=False)
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"evaluate: --ref must be a whole .npz file, got {self.path} ({error}); make or "
                "copy it again"
            ) from None

    def _read(self, name: str) -> np.ndarray:
        if name in self._known:
            return self._known[name]
        with self._opened() as file:
            try:
                self._known[name] = file[name]
                return self._known[name]
            except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
                raise ValueError(
                    f"evaluate: --ref must be a whole .npz file, got {self.path}, whose {name} "
                    f"cannot be read ({error}); make or copy it again"
                ) from None

    def statistics(self, detector: Detector) -> Gaussian:
        """Mean and covariance of a detector's features.

        Raises:
            ValueError: it has none, or of another network.
        """
        kind = statistics_name(detector.name)
        self._check(detector, kind, kind in self.kinds, "statistics")
        if f"{kind}/mu" in self._names:
            mu, sigma = self._read(f"{kind}/mu"), self._read(f"{kind}/sigma")
        else:
            values = self._others[kind]
            mu, sigma = values["mu"], values["sigma"]
        if detector.width not in (None, len(mu)):
            raise ValueError(
                f"evaluate: --ref must have {detector.width} features for {kind}, got {self.path} "
                f"with {len(mu)}; it is of another network"
            )
        return mu, sigma

    def features(self, detector: Detector) -> np.ndarray:
        """A detector's features of every image, `[N, D]`.

        Raises:
            ValueError: it has none, or of another network.
        """
        kind = statistics_name(detector.name)
        self._check(detector, kind, f"{kind}/features" in self._names, "features")
        return self._read(f"{kind}/features")

    def labels(self) -> np.ndarray:
        """The class of every image whose features it has; raises ValueError where it has none."""
        if "labels" not in self._names:
            raise ValueError(
                f"evaluate: --ref must have labels for figures by class, got {self.path} without; "
                "make it of labelled data, with --per-class"
            )
        return self._read("labels")

    def _check(self, detector: Detector, kind: str, there: bool, what: str) -> None:
        if not there:
            more = "" if what == "statistics" else " --keep-features"
            raise ValueError(
                f"evaluate: --ref must hold {what} for {kind}, got {self.path} with statistics for "
                f"{', '.join(self.kinds)}; make one with `autoguide-fast evaluate ref --features "
                f"{detector.name}{more}`"
            )
        made = ((self.protocol or {}).get("features") or {}).get(detector.name, {})
        mine = detector.about
        if made.get("sha256", mine.get("sha256")) != mine.get("sha256"):
            raise ValueError(
                f"evaluate: --ref must be of the same network as here, got {self.path}, made with "
                f"{made.get('file')} (SHA-256 {made['sha256'][:16]}...), and {mine.get('file')} "
                f"({str(mine.get('sha256'))[:16]}...) here; use one file for both"
            )


class ReferenceArrays:
    """Features of real images in memory, asked as a `ReferenceFile` is.

    Args:
        features: by the name of the detector, `[N, D]`.
        labels: integers `[N]`, or None.
    """

    def __init__(self, features: Mapping[str, Any], labels: Any = None) -> None:
        self._features = {
            name: as_features(values, "evaluate", "reference", at_least=2)
            for name, values in features.items()
        }
        self._labels = labels

    def statistics(self, detector: Detector) -> Gaussian:
        """Mean and covariance of a detector's features."""
        return feature_statistics(self._features[detector.name])

    def features(self, detector: Detector) -> np.ndarray:
        """A detector's features of every image, `[N, D]`."""
        return self._features[detector.name]

    def labels(self) -> np.ndarray:
        """The class of every image; raises ValueError where there are none."""
        if self._labels is None:
            raise ValueError(
                "evaluate: reference must have labels for figures by class, got none; pass them"
            )
        return np.asarray(self._labels)


def write_reference(
    path: str | os.PathLike,
    statistics: Mapping[str, Gaussian],
    features: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    protocol: dict,
) -> None:
    """Write a file that `ReferenceFile` reads, and for its `mu` and `sigma` `read_statistics`.

    Args:
        path: an `.npz` file.
        statistics, features: by the name of the detector; `features` may be empty.
        labels: int64 `[N]` of the images, or None.
        protocol: how they were made, as JSON holds it.
    """
    arrays: dict[str, np.ndarray] = {"protocol": np.array(json.dumps(protocol))}
    for name, (mu, sigma) in statistics.items():
        kind = statistics_name(name)
        arrays[f"{kind}/mu"], arrays[f"{kind}/sigma"] = mu, sigma
    for name, values in features.items():
        arrays[f"{statistics_name(name)}/features"] = values
    if labels is not None:
        arrays["labels"] = labels

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    write_atomically(Path(path), write)
