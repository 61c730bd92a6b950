"""What all adapters have in common: labels, conditioning, range of noise levels, one check."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..arguments import number
from ..modes import recording

LABEL_FORMATS = (None, "index", "one_hot")
_MOST_VARIANCE = 6.0  # of data, in the units in which noise levels are given
_ENOUGH = 64  # numbers that a correlation means something of


class Adapter(torch.nn.Module, abc.ABC):
    """A net of another library as a denoiser `(x, sigma, class_labels) -> D`.

    Subclasses say how the noise level is told to the net, and what its output makes of `x`, in
    `_denoise`. The net keeps its type and device; arithmetic around it is float32, or float64 for a
    net in float64.

    Args:
        net: A callable `(x_t, time, **conditioning)` that returns a tensor, a tuple of which the
            first is one, or an object with it as `sample`.
        sigma_min, sigma_max: The noise levels that it was trained for, in units of the data,
            `x = data + sigma noise`. They are the defaults of `autoguide_fast.sample`.
        img_resolution, img_channels: Of what it denoises; without them `sample` needs `noise`.
        label_dim: Number of classes; 0 for none.
        label_format: What the net wants its labels as: "index" for int64 `[N]`, "one_hot" for rows
            `[N, label_dim]`. None where it has none.
        label_name: Keyword by which it is given them.
        null_label: Class that stands for none, for classifier-free guidance (`unlabelled`) of a net
            with labels as indices.
        cond: Other keywords of the net: tensors with a first dimension of 1, which serve all
            images, or of the batch; other values are passed as they are.
        encoder: What `sample` decodes the samples with; see `autoguide_fast.encoders`.
        check: Whether the first evaluation at a high noise level looks at what the net says, and
            raises where it is of another prediction type. False for untrained nets.

    Raises ValueError or TypeError for options of another kind.
    """

    # Rows of zeros among labels mean what no label means, so that both fit into one batch.
    zero_label_is_none = True

    # What the net predicts, for messages; a subclass that differs says so.
    prediction = "the denoised images"

    def __init__(
        self,
        net: Any,
        sigma_min: float,
        sigma_max: float,
        *,
        img_resolution: int | None = None,
        img_channels: int | None = None,
        label_dim: int = 0,
        label_format: str | None = None,
        label_name: str = "class_labels",
        null_label: int | None = None,
        cond: Mapping[str, Any] | None = None,
        encoder: Any = None,
        check: bool = True,
    ):
        super().__init__()
        name = type(self).__name__
        if not callable(net):
            raise TypeError(
                f"{name}: net must be callable, got {type(net).__name__}; pass the net itself"
            )
        if label_format not in LABEL_FORMATS:
            raise ValueError(
                f"{name}: label_format must be one of {LABEL_FORMATS}, got {label_format!r}; "
                "'index' is an int64 tensor [N]"
            )
        if (label_dim > 0) != (label_format is not None):
            raise ValueError(
                f"{name}: label_dim and label_format must be given together, got {label_dim} and "
                f"{label_format!r}; leave both out for a net without labels"
            )

        def positive(value: float) -> bool:
            return 0 < value < math.inf

        rule, remedy = "above 0 and finite", "in units of the data's standard deviation"
        self.net = net
        self.sigma_min = number("sigma_min", sigma_min, rule, positive, remedy, name)
        self.sigma_max = number("sigma_max", sigma_max, rule, positive, remedy, name)
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                f"{name}: sigma_min must be below sigma_max, got {self.sigma_min:g} and "
                f"{self.sigma_max:g}; swap them"
            )
        if img_resolution is not None and img_channels is not None:
            self.img_resolution, self.img_channels = img_resolution, img_channels
        self.label_dim, self.label_format, self.label_name = label_dim, label_format, label_name
        self.null_label = null_label
        self.cond = dict(cond or {})
        self.encoder = encoder
        self.check = check

    takes_sigmas = True  # one level for each image, too

    @property
    def input_dtype(self) -> torch.dtype:
        """Type of `x` and `sigma` that this is to be fed."""
        return torch.float64 if self._net_dtype() == torch.float64 else torch.float32

    def forward(
        self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None, **cond: Tensor
    ) -> Tensor:
        """Denoised images `[N, ...]` of `x [N, ...]` at the levels `sigma`, 0-dim or `[N]`.

        `cond` are tensors by name, as those of the constructor, which they are added to or replace.
        """
        dtype = self.input_dtype
        x = x.to(dtype)
        sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device)
        levels = sigma.reshape(-1, *[1] * (x.ndim - 1))
        conditioning = self._conditioning(x, class_labels, {**self.cond, **cond})
        denoised = self._denoise(x, levels, conditioning)
        if denoised.shape != x.shape:
            raise ValueError(
                f"{type(self).__name__}: net must return {list(x.shape)} as it is given, got "
                f"{list(denoised.shape)}; see whether it predicts something else as well"
            )
        if self.check and x.numel() >= _ENOUGH and bool((levels >= self.sigma_max / 2).all()):
            self._look_at(x, levels, denoised)
            self.check = False
        return denoised

    @abc.abstractmethod
    def _denoise(self, x: Tensor, levels: Tensor, conditioning: dict[str, Any]) -> Tensor:
        """The denoised images of `x` at `levels`, which broadcast against it."""

    def _evaluated(self, x: Tensor, time: Tensor, conditioning: dict[str, Any]) -> Tensor:
        """What the net says of `x` at `time [N or 1]`, in the type of `x`."""
        dtype = self._net_dtype() or x.dtype
        time = time.reshape(-1).expand(len(x))
        output = self._call(x.to(dtype), time, conditioning)
        output = getattr(output, "sample", output)
        if isinstance(output, (tuple, list)):
            output = output[0]
        if not isinstance(output, torch.Tensor):
            raise TypeError(
                f"{type(self).__name__}: net must return a tensor, got {type(output).__name__}; "
                "wrap it in a function that does"
            )
        output = output.to(x.dtype)
        if output.ndim > 1 and output.shape[1] == 2 * x.shape[1]:  # a learned variance comes second
            output = output[:, : x.shape[1]]
        return output

    def _call(self, x: Tensor, time: Tensor, conditioning: dict[str, Any]) -> Any:
        return self.net(x, time, **conditioning)

    def _net_dtype(self) -> torch.dtype | None:
        if not isinstance(self.net, torch.nn.Module):
            return None
        kinds = (p.dtype for p in self.net.parameters() if p.is_floating_point())
        return next(kinds, None)

    def _conditioning(
        self, x: Tensor, class_labels: Tensor | None, cond: Mapping[str, Any]
    ) -> dict[str, Any]:
        given: dict[str, Any] = {}
        dtype = self._net_dtype() or x.dtype
        for name, value in cond.items():
            if isinstance(value, torch.Tensor):
                if value.ndim == 0 or len(value) not in (1, len(x)):
                    raise ValueError(
                        f"{type(self).__name__}: cond[{name!r}] must have a first dimension of 1 "
                        f"or of the batch, {len(x)}, got {list(value.shape)}; add one, or pass "
                        "batch_size so that all images are in one batch"
                    )
                value = value.to(x.device, dtype if value.is_floating_point() else value.dtype)
                value = value.expand(len(x), *value.shape[1:])
            given[name] = value
        labels = self._labels(x, class_labels)
        if labels is not None:
            given[self.label_name] = labels
        return given

    def _labels(self, x: Tensor, class_labels: Tensor | None) -> Tensor | None:
        if self.label_format is None:
            return None
        name = type(self).__name__
        if class_labels is None:
            if self.label_format == "one_hot":
                return torch.zeros(len(x), self.label_dim, device=x.device, dtype=x.dtype)
            if self.null_label is None:
                raise ValueError(
                    f"{name}: class_labels must be given to a net without a class for none, got "
                    "None; pass null_label if it has one"
                )
            return torch.full([len(x)], self.null_label, device=x.device, dtype=torch.int64)
        labels = torch.as_tensor(class_labels, device=x.device)
        if labels.ndim == 1 and not labels.is_floating_point():
            rows = torch.nn.functional.one_hot(labels.long(), self.label_dim)
        else:
            rows = labels
        if rows.ndim != 2 or rows.shape[1] != self.label_dim:
            raise ValueError(
                f"{name}: class_labels must be [N] classes or [N, {self.label_dim}] rows, got "
                f"{list(labels.shape)}; leave them out for the net without a label"
            )
        rows = rows.expand(len(x), -1)
        if self.label_format == "one_hot":
            return rows.to(self._net_dtype() or x.dtype)
        if not recording():
            self.check_labels(rows)
        classes = rows.argmax(dim=1)
        if self.null_label is not None:
            classes = torch.where((rows == 0).all(dim=1), self.null_label, classes)
        return classes

    def check_labels(self, rows: Tensor) -> None:
        """Raise ValueError where rows of labels `[N, label_dim]` are none that the net can be told.

        Reads from the device: an engine that replays a recording calls it beforehand.
        """
        if self.label_format != "index":
            return
        hot = torch.nn.functional.one_hot(rows.argmax(dim=1), self.label_dim)
        fits = (rows == hot).all(dim=1)
        if self.null_label is not None:
            fits |= (rows == 0).all(dim=1)
        if not bool(fits.all()):
            raise ValueError(
                f"{type(self).__name__}: class_labels must each name one class, for a net that "
                "wants indices, got soft rows; pass classes"
            )

    def _look_at(self, x: Tensor, levels: Tensor, denoised: Tensor) -> None:
        """Refuse what cannot be denoised images: noise, or as large as the noise."""
        size = denoised.float().square().mean().sqrt()
        similarity = torch.nn.functional.cosine_similarity(
            denoised.flatten().float(), x.flatten().float(), dim=0
        )
        # Of high noise a denoiser can tell nearly nothing: its output is small, and like `x` only
        # by the share std^2 / sigma^2, which a net for centred data may have alone.
        level = float(levels.mean())
        like_noise = abs(float(similarity)) > 0.8 and float(size) * level > _MOST_VARIANCE
        if level > 4 and (float(size) > level / 2 or like_noise):
            raise ValueError(
                f"{type(self).__name__}: net must predict {self.prediction}, got what makes of "
                f"pure noise at sigma {level:.4g} images of magnitude {float(size):.3g} that are "
                f"like the noise by {float(similarity):.2f}; see its prediction type, or pass "
                "check=False if it is not trained"
            )
