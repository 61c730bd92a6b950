"""What the engines for a CPU and for a GPU have in common, and what they owe whoever runs them."""

import abc

from .._extension import build_info
from .prepared import device_of, unsupported_reason


class BaseEngine(abc.ABC):
    """A model and its guide, made ready to run on one device.

    `sample` takes any of these in the place of a model: it reads `model`, `guide` and `device`, and
    runs the steppers that `stepper` makes.

    Attributes:
        model, guide (callable): The prepared denoisers, `(x, sigma, class_labels) -> D`; `guide`
            may be None.
        dtype (torch.dtype): What it multiplies.
        device (torch.device): Where it runs.
    """

    @abc.abstractmethod
    def stepper(self, guidance, class_labels, steps):
        """A `sampler.Stepper` of this pair.

        Args:
            guidance (float): The weight w.
            class_labels (Tensor [N or 1, label_dim] or None)
            steps (sequence of sampler.Step): The steps that will be run.
        """

    @abc.abstractmethod
    def close(self):
        """Release the memory that running takes, not that of the weights; it may run again."""

    @abc.abstractmethod
    def peak_memory(self, batch, threads=None):
        """Bytes that sampling `batch` images takes."""

    @abc.abstractmethod
    def profile(self, batch=1, repeats=20):
        """Measure where the time of an evaluation goes, net by net; returns a `Profile`."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __reduce__(self):
        # What is packed, not the nets, which are not kept.
        return _restored, (type(self), build_info()["version"], self.__getstate__())

    def __getstate__(self):
        return vars(self).copy()

    def __setstate__(self, state):
        vars(self).update(state)


def _restored(kind, version, state):
    """The engine with this state: what copies and pickles are made with."""
    if version != build_info()["version"]:
        raise ValueError(
            f"Engine: pickles must be of autoguide_fast {build_info()['version']}, got one of "
            f"{version}, whose packed weights may differ; pickle the networks, and make it anew"
        )
    engine = object.__new__(kind)
    engine.__setstate__(state)
    return engine


def check_pair(model, guide):
    """Raise ValueError where an engine cannot be made of these."""
    if reason := pair_unsupported_reason(model, guide):
        raise ValueError(f"Engine: {reason}")


def pair_unsupported_reason(model, guide):
    """Why no engine can be made of a pair, as the rest of a message; None where one can."""
    for role, net in (("model", model), ("guide", guide)):
        reason = None if role == "guide" and net is None else unsupported_reason(net)
        if reason:
            return f"{role} must be a plain float32 Precond, got {reason}"
    if guide is None:
        return None
    if guide.sigma_data != model.sigma_data:
        return (
            f"guide must have the model's sigma_data {model.sigma_data:g}, got "
            f"{guide.sigma_data:g}; the fused step preconditions both alike"
        )
    if device_of(guide) != device_of(model):
        return (
            f"guide must be on the model's device {device_of(model)}, got one on "
            f"{device_of(guide)}; move it with .to()"
        )
    return None
