"""What metrics are called: a kind and the features it is taken on, such as `fd_dinov2`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Kind -> (what it is, names of its figures).
KINDS = {
    "fd": ("Frechet distance", ("fd",)),
    "kid": ("kernel distance", ("kid",)),
    "pr": ("improved precision and recall", ("precision", "recall")),
    "dc": ("density and coverage", ("density", "coverage")),
    "near": ("near repeats of training data", ("near_repeats", "nearest_ratio")),
    "cmmd": ("CLIP's maximum mean discrepancy", ("cmmd",)),
}
# Kinds that need more of the reference than a mean and a covariance.
NEED_FEATURES = ("kid", "pr", "dc", "near", "cmmd")

# Features by the name that metrics have them by -> what they are.
FEATURES = {
    "inception": "the Inception-v3 network that FID is defined on",
    "dinov2": "DINOv2 ViT-L/14",
    "clip": "CLIP ViT-L/14 at 336 pixels",
    "efficientnet": "EfficientNet-Lite0, whose weights are in a package",
    "pixels": "the pixels themselves",
    "file": "a network in a file of your own",
}
OWN = "features"  # what features of a caller's own function are called
_OWN_NAMES = {"fid": ("fd", "inception"), "cmmd": ("cmmd", "clip")}


@dataclass(frozen=True)
class Metric:
    """A kind of metric on one kind of features.

    kind: of `KINDS`. features: of `FEATURES`, or `OWN`.
    """

    kind: str
    features: str

    @property
    def name(self) -> str:
        """What it is called: `fid`, `kid`, `pr_dinov2`; Inception goes without saying."""
        return _named(self.kind, self.features)

    @property
    def figures(self) -> tuple[str, ...]:
        """What its figures are called: `fid`, `precision`, `recall_dinov2`."""
        return tuple(_named(figure, self.features) for figure in KINDS[self.kind][1])

    @property
    def needs_features(self) -> bool:
        """Whether the reference must hold features, not only their mean and covariance."""
        return self.kind in NEED_FEATURES


def statistics_name(features: str) -> str:
    """What files of statistics call a kind of features: `fid`, as the reference does, `fd_pixels`.

    The names are those of the Frechet distance on them.
    """
    return _named("fd", features)


def parse_metric(name: str, default: str = "inception") -> Metric:
    """The metric called `name`.

    Args:
        name: as `Metric.name`; a kind alone is on the features `default`.
        default: of `FEATURES`, or `OWN`.

    Raises:
        ValueError: there is none of that name.
    """
    if name in _OWN_NAMES:
        return Metric(*_OWN_NAMES[name])
    kind, _, features = name.partition("_")
    found = Metric(kind, features or default)
    if kind not in KINDS or kind == "cmmd" or found.features not in (default, *FEATURES):
        raise ValueError(
            "evaluate: metrics must be named as fid, cmmd, or as KIND or KIND_FEATURES with one of "
            f"fd, kid, pr, dc, near and one of {', '.join(FEATURES)}, got {name!r}; for example "
            "fd_dinov2"
        )
    return found


def parse_metrics(names: Iterable[str], default: str = "inception") -> list[Metric]:
    """The metrics of these names, each once; raises ValueError as `parse_metric`, or for none."""
    found = list(dict.fromkeys(parse_metric(name, default) for name in names))
    if not found:
        raise ValueError("evaluate: metrics must be named, got none; fid is one")
    return found


def _named(kind: str, features: str) -> str:
    if (kind, features) == ("fd", "inception"):
        return "fid"
    if features in ("inception", OWN) or kind == "cmmd":
        return kind
    return f"{kind}_{features}"
