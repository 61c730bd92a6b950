"""One job of `sample`: the nets found, each image with its seed, class, name and batch."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..arguments import shown_ranges
from .options import Sampling

if TYPE_CHECKING:
    import numpy as np

    from ...guidance import Guidance, SavedWeights

_CHUNK = 64  # images whose classes are drawn at a time


class Job:
    """What one command, or one job of a manifest, is to sample.

    Args:
        sampling: its options.
        accept_licence: whether published weights may be downloaded.

    Raises:
        ValueError: a net cannot be found, or no PNGs can be made of its samples.

    Attributes:
        settings: what the images are sampled with, but for seeds and classes, as JSON holds it. A
            net is a dict with `name` and `digest`, of which the second tells it from others.
        seeds, labels: of each image; `labels` None where each seed draws its class, or there are
            none.
        names: of the files without `.png`: `00000/000007`, or `00000/000007-class3` where the class
            was asked for. A folder holds a thousand seeds. The same name is the same image.
        first: position of the first image of each name, in their order: the images that there are.
        batches: positions of the images that are sampled together.
        shape: (channels, height, width) of the finished images; label_dim: number of classes.
    """

    def __init__(self, sampling: Sampling, accept_licence: bool = False) -> None:
        from ... import checkpoints
        from ...guidance import is_of_model
        from ...guidance_input import guidance_input, guidance_range
        from ...request import DEFAULT_BATCH_SIZE

        self.sampling = sampling
        self._nets: list[Any] | None = None
        weights: list[Any] = list(
            sampling.guidance or [checkpoints.default_guidance(sampling.model)]
        )
        self.guides: list[str] = []
        if weights != [1] or sampling.kind is not None:
            named = [checkpoints.bundled_guide(net) or net for net in sampling.guide or ()]
            own = checkpoints.bundled_guide(sampling.model)
            self.guides = named or ([] if own is None else [own])
        self._saved: SavedWeights | None = None
        if isinstance(weights[0], (str, dict)):
            if not self.guides and (learnt := guidance_range(sampling.model)):
                guidance_input(str(weights[0]), None, learnt)  # which says why not
            self._saved = _saved(weights[0], sampling.model)
        elif len(weights) > 1 and len(weights) != len(self.guides):
            raise ValueError(
                f"sample: --guidance must be one weight for each of {len(self.guides)} guides, got "
                f"{len(weights)}; name the guides by --guide"
            )
        intervals = sampling.intervals
        self.guidance: Any = weights if len(weights) > 1 else weights[0]
        self.interval: Any = intervals if len(intervals) > 1 else next(iter(intervals), None)
        kind = None if sampling.kind is None else self._kind()
        for net in (sampling.model, *self.guides):
            if not is_of_model(net):
                checkpoints.find(net, "sample: a net", accept_licence)
        self._header = checkpoints.read_header(
            checkpoints.find(sampling.model, "sample: model"), "sample"
        )
        self.shape = image_shape(sampling.model, self._header)
        self.label_dim = self._header["config"].get("label_dim") or 0
        self.batch_size = sampling.batch_size or DEFAULT_BATCH_SIZE
        churn = sampling.all_churn
        self.settings = {
            "model": identity(sampling.model),
            "guide": _alone([identity(guide) for guide in self.guides]),
            "guidance": self.guidance,
            "interval": None
            if not self.guides or sampling.interval is None
            else list(sampling.interval),
            "steps": sampling.steps,
            "sigma_min": sampling.sigma_min,
            "sigma_max": sampling.sigma_max,
            "rho": sampling.rho,
            "churn": churn if churn[0] else None,
            "compute_dtype": sampling.compute_dtype,
            # Named where they are not the usual ones, as manifests of earlier versions have none.
            **({} if sampling.kind is None else {"kind": sampling.kind}),
            **({} if sampling.sampler == "heun" else {"sampler": sampling.sampler}),
            **({} if sampling.schedule == "rho" else {"schedule": sampling.schedule}),
        }
        if kind is not None:
            self.guidance, self.interval = kind, None
        if self._saved is not None:
            self.settings["guidance"] = self._saved.as_dict()
            self.guidance = _alone(self._saved.functions())
        self._lay_out()

    def _kind(self) -> Guidance:
        from ...guidance import named_kind

        weight: Any = next(iter(self.sampling.guidance or ()), None)
        try:
            return named_kind(self.sampling.kind or "", weight, self.interval)
        except ValueError as error:
            raise ValueError(f"sample: --{error}") from None

    def _lay_out(self) -> None:
        sampling = self.sampling
        self.seeds, self.labels = list(sampling.seeds), None
        if sampling.balanced:
            if not self.label_dim:
                raise ValueError(
                    "sample: --balanced must be for a model with classes, got "
                    f"{sampling.model} without; leave it out"
                )
            self.labels = [i % self.label_dim for i in range(len(self.seeds))]
        elif sampling.classes is not None:
            count = max(len(self.seeds), len(sampling.classes))
            self.seeds = list(itertools.islice(itertools.cycle(self.seeds), count))
            self.labels = list(itertools.islice(itertools.cycle(sampling.classes), count))
        self.names = [f"{seed // 1000:05d}/{seed:06d}" for seed in self.seeds]
        if self.labels is not None:
            self.names = [f"{n}-class{k}" for n, k in zip(self.names, self.labels, strict=True)]
        first = {name: i for i, name in reversed(list(enumerate(self.names)))}
        self.first = sorted(first.values())
        self._counts = set(self.first)
        count, size = len(self.seeds), self.batch_size
        self.batches = [range(i, min(i + size, count)) for i in range(0, count, size)]

    def written(self, batch: Iterable[int]) -> list[int]:
        """The images of a batch that are written: not those that another one of the name is."""
        return [i for i in batch if i in self._counts]

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for beside the settings, as JSON holds it."""
        sampling = self.sampling
        if not self.label_dim:
            rule = "the model has no classes"
        elif sampling.balanced:
            rule = f"image i of the seeds as listed, from 0, has class i mod {self.label_dim}"
        elif sampling.classes is not None:
            rule = "seeds and classes are paired as listed, the shorter list repeated"
        else:
            rule = "drawn from the image's own seed after its noise, evenly among all classes"
        classes = sampling.classes
        return {
            "seeds": shown_ranges(sampling.seeds),
            "classes": None if classes is None else shown_ranges(classes),
            "balanced": sampling.balanced,
            "labels_rule": rule,
            "batch_size": self.batch_size,
        }

    @property
    def images(self) -> dict[str, Any]:
        """What the finished images are, and how they come about from samples, as JSON holds it."""
        channels, height, width = self.shape
        about = {"channels": channels, "height": height, "width": width}
        if self._header.get("encoder") == "latents":
            from ...encoders import STABILITY_VAE

            return about | {
                "encoder": f"latents of {STABILITY_VAE}",
                "rounding": "255 clamp(decoded, 0, 1), cut to whole numbers",
            }
        return about | {
            "encoder": "pixels",
            "rounding": "clamp(127.5 x + 128, 0, 255), cut to whole numbers",
        }

    @property
    def key(self) -> str:
        """The same for jobs that are the same."""
        digests = {k: _digest(v) for k, v in self.settings.items()}
        return json.dumps([digests, self.request], sort_keys=True)

    def all_labels(self) -> list[int] | None:
        """The class of each image in `first`, or None for a model without classes.

        Drawn ones are drawn once more, which takes the time of drawing all of the noise.
        """
        if not self.label_dim:
            return None
        if self.labels is not None:
            return [self.labels[i] for i in self.first]
        from ...seeds import StackedRandom

        config = self._header["config"]
        shape = [config["img_channels"], config["img_resolution"], config["img_resolution"]]
        found: list[int] = []
        for at in range(0, len(self.first), _CHUNK):
            streams = StackedRandom("cpu", [self.seeds[i] for i in self.first[at : at + _CHUNK]])
            streams.randn(shape)  # comes before the class
            found += streams.randint(self.label_dim).tolist()
        return found

    def sample(
        self,
        batches: Iterable[range],
        on_batch: Callable[[range, np.ndarray], object],
        device: str,
        callback: Callable | None = None,
    ) -> None:
        """Sample these batches, or, if there are none, check all options and load the nets."""
        import torch

        import autoguide_fast

        model, *guides = self._loaded(device)
        if self._saved is not None:
            self._saved.check(model, guides)
        compute_dtype = self.sampling.compute_dtype
        if compute_dtype not in (None, "auto"):
            compute_dtype = getattr(torch, compute_dtype)
        churn = self.sampling.all_churn
        autoguide_fast.sample(
            model,
            guide=_alone(guides),
            guidance=self.guidance,
            interval=self.interval,
            class_labels=self.labels,
            seeds=self.seeds,
            num_steps=self.sampling.steps,
            sigma_min=self.sampling.sigma_min,
            sigma_max=self.sampling.sigma_max,
            rho=self.sampling.rho,
            S_churn=churn[0],
            S_min=churn[1],
            S_max=churn[2],
            S_noise=churn[3],
            batch_size=self.batch_size,
            compute_dtype=compute_dtype,
            array="numpy",
            on_batch=on_batch,
            batches=batches,
            callback=callback,
            sampler=self.sampling.sampler,
            schedule=self.sampling.schedule,
        )

    def _loaded(self, device: str) -> list[Any]:
        """Model and guides, loaded once."""
        from ... import checkpoints
        from ...guidance import guide_of_model, is_of_model

        if self._nets is None:
            model = checkpoints.load(self.sampling.model, device)
            self._nets = [
                model,
                *(
                    guide_of_model(net, model)
                    if is_of_model(net)
                    else checkpoints.load(net, device)
                    for net in self.guides
                ),
            ]
        return self._nets


def _saved(given: str | dict[str, Any], model: str) -> SavedWeights:
    """Weights by noise level: of a file, beside the model, or in a manifest."""
    from ... import checkpoints
    from ...guidance import SavedWeights, weights_of

    if isinstance(given, str):
        return weights_of(given, checkpoints.find(model, "sample: model"))
    try:
        return SavedWeights.from_dict(given, given["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"sample: --from-manifest must say the weights by noise level, got {error}; restore it"
        ) from None


def _alone(values: list[Any]) -> Any:
    """None, the one value, or the list of several."""
    return values if len(values) > 1 else next(iter(values), None)


def _digest(value: Any) -> Any:
    if isinstance(value, list):
        return [_digest(item) for item in value]
    return value["digest"] if isinstance(value, dict) else value


def identity(net: str) -> dict[str, str]:
    """A net's name and what tells it from others: its checksum, without reading it all."""
    from ... import checkpoints
    from ...files import sha256
    from ...guidance import is_of_model

    if is_of_model(net):  # with the weights of the model
        return {"name": net, "digest": hashlib.sha256(net.encode()).hexdigest()}
    path = checkpoints.find(net, "sample: a net")
    digest = checkpoints.read_header(path, "sample").get("checksum")
    if digest is None:  # a file of an earlier version, or of another program
        digest = sha256(path)
    return {"name": net, "digest": digest}


def changes(before: dict, now: dict) -> list[str]:
    """What differs of `now` in `before`, as words; nets are compared by their contents."""
    return [
        f"{name} was {_shown(before.get(name))}, is {_shown(value)}"
        for name, value in ({name: None for name in before if name in _UNUSUAL} | now).items()
        if _digest(before.get(name)) != _digest(value)
    ]


_UNUSUAL = ("kind", "sampler", "schedule")  # settings that are named where they are not the usual


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return " and ".join(map(_shown, value))
    if isinstance(value, dict):
        return f"{value['name']} (contents {value['digest'][:8]})"
    return "none" if value is None else str(value)


def image_shape(net: str, header: dict[str, Any]) -> tuple[int, int, int]:
    """Channels, height and width of the PNGs, of which all are the same.

    Raises:
        ValueError: PNGs cannot be made of the net's samples.
    """
    from ...encoders import LatentEncoder, PixelEncoder

    channels, side = (header["config"].get(k) for k in ("img_channels", "img_resolution"))
    if not isinstance(channels, int) or not isinstance(side, int):
        raise ValueError(
            f"sample: model must say its img_channels and img_resolution, got {net} with "
            f"{channels!r} and {side!r}; save it again with autoguide_fast.checkpoints.save"
        )
    if header.get("encoder") == LatentEncoder.name:
        return 3, side * LatentEncoder.pixels, side * LatentEncoder.pixels
    if header.get("encoder") != PixelEncoder.name:
        raise ValueError(
            f"sample: model must have an encoder that makes images of its samples, got {net} "
            f"with {header.get('encoder')}; set net.encoder and save it again, or call "
            "autoguide_fast.sample in Python, which returns the samples"
        )
    if channels not in (1, 3):
        raise ValueError(
            f"sample: model must make images of 1 or 3 channels, got {net} with {channels}; call "
            "autoguide_fast.sample in Python, which returns all of them"
        )
    return channels, side, side
