"""How several denoisers become one: the guided combination, its interval, the unlabelled guide."""

import torch


def guided(denoised, guide_denoised, guidance):
    """The guided denoiser's output `D_w = D0 + w (D1 - D0)` (arXiv 2406.02507, eq. 3).

    `denoised` is D1, what the model says; `guide_denoised` is D0, what its guide says;
    `guidance` is w: 1 is the model itself, above 1 steps away from the guide. Tensors of one
    shape; differentiable. The sampler computes the same inside its fused step.
    """
    return guide_denoised + guidance * (denoised - guide_denoised)


def guides_at(sigma, guidance, interval=None):
    """Whether the guide has to run at the noise level `sigma` (a host-side float).

    It does unless `guidance` is 1, or `sigma` lies outside `interval = (lo, hi]`, where the
    guidance counts as 1 (arXiv 2404.07724).
    """
    if guidance == 1:
        return False
    return interval is None or interval[0] < sigma <= interval[1]


class Unlabelled:
    """A network that is never told the label; see `unlabelled`."""

    label_dim = 0

    def __init__(self, net):
        self.net = net

    def __call__(self, x, sigma, class_labels=None):
        return self.net(x, sigma, None)

    def __getattr__(self, name):
        if name == "net":  # not there yet, as while unpickling
            raise AttributeError(name)
        return getattr(self.net, name)


def unlabelled(net):
    """`net` without its label, as a guide for classifier-free guidance.

    `sample(net, guide=unlabelled(net), guidance=2)` is CFG from the model's own unlabelled
    output. That output means something only if the label was dropped now and then in training;
    otherwise guide with a separate network that was trained without labels.

    Takes and returns a callable `(x, sigma, class_labels) -> D`.
    """
    if not callable(net):
        raise TypeError(
            f"unlabelled: net must be callable, got {type(net).__name__}; load a name or a path "
            "with autoguide_fast.load first"
        )
    return Unlabelled(net)


def guided_denoiser(model, guide, guidance, interval=None):
    """One denoiser `(x, sigma, class_labels) -> D` made of a model and its guide.

    For use outside `autoguide_fast.sample`, which takes model and guide separately and fuses them.
    `sigma` must then be one level for the whole batch, and is read back to the host where there
    is an `interval`. With `guidance` 1, and outside `interval`, the guide does not run.
    """

    def denoiser(x, sigma, class_labels=None):
        denoised = model(x, sigma, class_labels)
        level = float(torch.as_tensor(sigma).max()) if interval is not None else None
        if not guides_at(level, guidance, interval):
            return denoised
        return guided(denoised, guide(x, sigma, class_labels), guidance)

    return denoiser
