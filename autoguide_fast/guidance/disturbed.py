"""A guide from the model's own weights that is told something else, or loses what it computes."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import arguments
from .denoisers import Denoiser, bare, module_of
from .evaluation import Batch, Evaluation
from .weights import Weight, weight_at


@dataclass(frozen=True)
class Disturbance:
    """What of a net's inputs is changed; `disturbed` says how.

    Attributes:
        input_noise, random_labels, embedding_noise, dropout: as for `disturbed`.
        label_dim: classes of the net, where it tells.
        emb_channels: width of its embedding, 0 where nothing is added to that.
    """

    input_noise: float
    random_labels: bool
    embedding_noise: Weight
    dropout: float
    label_dim: int | None
    emb_channels: int

    def begin(self, batch: Batch) -> Disturbing:
        """What changes the inputs of one batch, from its images' seeds."""
        if batch.randn is None:
            raise ValueError(
                "sample: seeds must be given beside noise for a disturbed net, got None; what it "
                "is told is drawn from them"
            )
        return Disturbing(self, batch.randn)


class Disturbing:
    """A `Disturbance` of one batch: what is drawn holds for all evaluations of one step.

    Args:
        disturbance: what is changed.
        randn: draws from the images' seeds.
    """

    def __init__(self, disturbance: Disturbance, randn: Callable[[Sequence[int]], Tensor]) -> None:
        self.of, self._randn = disturbance, randn
        self._step = -1
        self._drawn: dict[str, Tensor] = {}

    def inputs(self, x: Tensor, at: Evaluation, labels: Tensor | None) -> Inputs:
        """What the net is given in the place of the state `x`, its level and the labels."""
        if at.index != self._step:
            self._step, self._drawn = at.index, {}
        found = Inputs(x, at.sigma, at.level, labels, None, None)
        if self.of.input_noise:
            grown = 1 + self.of.input_noise
            noise = self._draw("x", x.shape[1:]).to(x)
            found.x = x + noise * (math.sqrt(grown**2 - 1) * at.sigma)
            found.sigma, found.level = at.sigma * grown, at.level * grown
        if self.of.random_labels:
            if labels is None or labels.ndim != 2:
                raise ValueError(
                    "sample: class_labels must be those of a model with classes for random labels, "
                    "got none; disturb another input"
                )
            drawn = self._draw("labels", labels.shape[1:]).argmax(1)
            one_hot = torch.nn.functional.one_hot(drawn, labels.shape[1])
            found.class_labels = one_hot.to(labels)
        scale = weight_at(self.of.embedding_noise, at.sigma)
        if scale:
            noise = self._draw("embedding", [self.of.emb_channels])
            found.embedding_noise = noise.to(torch.float32) * scale
        if self.of.dropout:
            found.drop = self._drop()
        return found

    def _drop(self) -> Callable[[Tensor], Tensor]:
        """What drops elements of the blocks' branches in one evaluation."""
        # A standard normal number lies below it with the probability of dropping.
        threshold = statistics.NormalDist().inv_cdf(self.of.dropout)
        blocks = itertools.count()

        def drop(y: Tensor) -> Tensor:
            name = f"block {next(blocks)}"
            if name not in self._drawn:  # as truth values, which are a quarter of the numbers
                self._drawn[name] = self._randn(list(y.shape[1:])) >= threshold
            return torch.where(self._drawn[name], y / (1 - self.of.dropout), 0.0)

        return drop

    def _draw(self, name: str, shape: Sequence[int]) -> Tensor:
        if name not in self._drawn:
            self._drawn[name] = self._randn(list(shape))
        return self._drawn[name]


@dataclass
class Inputs:
    """What a disturbed net is given."""

    x: Tensor
    sigma: float
    level: Tensor  # sigma, 0-dim float64 on the device
    class_labels: Tensor | None
    embedding_noise: Tensor | None  # [N, emb_channels]
    drop: Callable[[Tensor], Tensor] | None  # of the blocks' branches, block by block


class Disturbed:
    """A network whose inputs are changed at random; see `disturbed`."""

    def __init__(self, net: Denoiser, disturbance: Disturbance) -> None:
        self.net, self.disturbance = net, disturbance

    def __call__(self, *arguments: object, **cond: object) -> Tensor:
        raise ValueError(
            "disturbed: a disturbed net must be evaluated by sample or Engine.sample, got a call; "
            "what it is told is drawn from the images' seeds"
        )

    def __getattr__(self, name: str) -> Any:
        if name in ("net", "disturbance"):  # not there yet, as while unpickling
            raise AttributeError(name)
        return getattr(self.net, name)


def disturbed(
    net: Denoiser,
    input_noise: float = 0.0,
    random_labels: bool = False,
    embedding_noise: Weight = 0.0,
    dropout: float = 0.0,
) -> Disturbed:
    """`net` that is told something else than it should be, as a guide that no one has to train.

    All is drawn from the images' seeds, anew in each step, so that an image depends on its seed
    alone. The net is the same as the undisturbed one: engines pack its weights once.

    Args:
        net: what is disturbed: any callable `(x, sigma, class_labels) -> D`.
        input_noise: a: noise is added to `x` until its level is `(1 + a) sigma`, which is what the
            net is told. (A synthetic degradation of arXiv 2406.02507, section 4, whose model has 10
            % of it and whose guide 20 %. That the net is told is the reading taken here.)
        random_labels: the net is told a class that is drawn, uniformly, and stands for no label at
            all (independent condition guidance, arXiv 2407.02687, section 4.1).
        embedding_noise: s: normal noise of standard deviation s is added to the embedding of the
            noise level, which has unit magnitude, before the label's joins it (time-step guidance,
            arXiv 2407.02687, section 4.2, with `s t^alpha` there: pass a function of the noise
            level for that). For a `Precond`.
        dropout: probability of dropping an element of a residual branch, as in training (the other
            synthetic degradation of arXiv 2406.02507, section 4, with 5 % and 10 %). For a
            `Precond`, evaluated as it is: engines have no dropout, and refuse it.

    Returns:
        What `sample` and `Engine` take as a guide, or as a model. It cannot be called by itself.

    Raises:
        TypeError, ValueError: options that change nothing, or that the net does not have.
    """
    from ..networks import Precond

    if not callable(net) or isinstance(net, Disturbed):
        raise TypeError(
            f"disturbed: net must be a callable, got {type(net).__name__}; give all options at once"
        )
    input_noise = arguments.number(
        "input_noise", input_noise, "from 0 to 10", lambda v: 0 <= v <= 10, "0 is none", "disturbed"
    )
    scale = arguments.weight(embedding_noise, "disturbed", "embedding_noise")
    dropout = arguments.number(
        "dropout", dropout, "from 0 to below 1", lambda v: 0 <= v < 1, "0 is none", "disturbed"
    )
    if not any([input_noise, random_labels, callable(scale) or scale, dropout]):
        raise ValueError(
            "disturbed: input_noise, random_labels, embedding_noise or dropout must change "
            "something, got none of them; input_noise=0.1 is a start"
        )
    label_dim = getattr(net, "label_dim", None)
    if random_labels and label_dim == 0:
        raise ValueError(
            "disturbed: random_labels must be False for a net without labels, got True; disturb "
            "another input"
        )
    emb_channels = 0
    if callable(scale) or scale:
        embedding = getattr(getattr(module_of(net), "unet", None), "emb_noise", None)
        if embedding is None:
            raise TypeError(
                f"disturbed: embedding_noise must be 0 for {type(net).__name__}, got "
                f"{embedding_noise!r}; it is for a Precond"
            )
        emb_channels = embedding.weight.shape[0]
    if dropout and not isinstance(bare(net), Precond):
        raise TypeError(
            f"disturbed: dropout must be 0 for {type(bare(net)).__name__}, got {dropout:g}; it is "
            "for a Precond"
        )
    told = Disturbance(input_noise, bool(random_labels), scale, dropout, label_dim, emb_channels)
    return Disturbed(net, told)


def undisturbed_net(net: Any) -> tuple[Any, Disturbance | None]:
    """A net without what `disturbed` put around it, and that."""
    return (net.net, net.disturbance) if isinstance(net, Disturbed) else (net, None)
